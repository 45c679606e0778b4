"""Remote providers: pure codecs, prices, and the one module that makes network calls (``client``)."""
