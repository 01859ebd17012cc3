"""Environment variables for Ray Serve's fast path, and for replicas that start and stop.

They must be set on every node before Ray starts there. With Serve's defaults the throughput is a quarter of that of vLLM's own server
(benchmarks/serving.py), and a killed replica's requests are lost (benchmarks/soak.py).
"""

SERVE_ENVIRONMENT = {
    # HAProxy instead of Serve's Python proxy: it passes requests directly to the replicas' ports.
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # The replica serves vLLM's app itself, in one event loop: no event of a stream crosses a process or thread on its way out.
    "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # at 0.1 s, the default, the controller uses a twentieth of a core
    # Our router reads the request's body.
    "RAY_SERVE_INGRESS_REQUEST_ROUTER_FORWARD_BODY": "1",
    # While one router restarts, HAProxy asks the other.
    "RAY_SERVE_INGRESS_ROUTER_REPLICAS_PER_NODE": "2",
    # HAProxy learns within a second that a replica stops. The default of 30 s would delay every stop.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    # HAProxy restarts whenever a replica starts or stops, and the old process finishes its answers. At the default of 120 s it cut them.
    # Ray keeps a port unused for 30 s longer than this before another replica gets it. A node has a thousand ports.
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "900",
    # Serve's proxy, HAProxy's fallback, ends the streams of a killed replica with an error.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "unlearn_ray.serving.fallback:middlewares",
    # A request that a killed replica had not begun to answer is sent to another replica. That is safe: requests are idempotent.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
}
