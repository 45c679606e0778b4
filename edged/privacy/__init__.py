"""Personal data in a request: found, replaced before a stranger sees it, and put back into the answer. Pure text work.

``detect`` finds it, ``vault`` keeps which placeholder stands for what, ``rewrite`` walks a request, ``restore`` undoes.
"""
