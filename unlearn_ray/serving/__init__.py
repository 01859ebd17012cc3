"""The service: base and unlearned models behind one OpenAI-compatible endpoint, on Ray Serve and vLLM.

`settings` says what is served, `registry` which versions there are, `requests` what a request may ask, `gate` stands before vLLM's
own app in every replica, `desk` answers about models and runs, `app` builds the Serve application, `service` starts it here.
"""
