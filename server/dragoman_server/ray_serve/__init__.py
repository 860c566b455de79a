"""A host on Ray Serve: its proxies take calls, its replicas answer them with the same services as `app`.

`application.py` runs in the replicas, `proxy.py` in the proxies, `methods.py` in both.
"""
