"""The service: base and unlearned models behind one OpenAI-compatible endpoint, on Ray Serve and vLLM.

`settings` holds the service's settings and `registry` the published versions. `requests` checks requests. `gate` wraps vLLM's app in
every replica, and `desk` answers questions about models and runs. `app` builds the Serve application, and `service` starts it on this
machine.
"""
