"""Variables of Ray Serve's fast path, and of replicas that come and go. They must stand where Ray is started, on every node, before any process of it starts.

Serve's defaults reach a quarter of the throughput of vLLM's own server (benchmarks/serving.py), and lose requests with a replica
(benchmarks/soak.py).
"""

SERVE_ENVIRONMENT = {
    # HAProxy instead of Serve's Python proxy; it passes requests to the replicas' own ports.
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # The replica serves vLLM's app itself, in one event loop: no event crosses a process or thread on its way out.
    "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # of the controller, which at 0.1 s takes a twentieth of a core
    # What our router reads.
    "RAY_SERVE_INGRESS_REQUEST_ROUTER_FORWARD_BODY": "1",
    # While one is started again, HAProxy asks the other.
    "RAY_SERVE_INGRESS_ROUTER_REPLICAS_PER_NODE": "2",
    # HAProxy hears of a replica that goes within a second: 30, the default, would be waited for at every end.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    # HAProxy is started anew for each replica that comes or goes, and the old one carries its answers on: at 120 s, the default, it cut them.
    # Ray leaves a port alone 30 s longer before another replica gets it, and a node has a thousand.
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "900",
    # Its proxy, which HAProxy falls back to, ends the streams of a killed replica with an error.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "unlearn_ray.serving.fallback:middlewares",
    # A request that a killed replica had not begun to answer is put to another one: asking twice changes nothing.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
}
