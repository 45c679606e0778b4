"""The load client: what a user of a server feels, measured the same way for edged and for anybody else's.

One module per subcommand (``serve``, ``compare``), each with ``add_parser(subparsers)``; the rest is shared: ``stats``
(pure figures), ``prompts``, ``client`` (one streamed answer), ``load`` (rounds), ``report`` (tables and JSON).
``client`` uses aiohttp directly, not edged's own upstream client: a measuring tool must not share the code it measures.
"""
