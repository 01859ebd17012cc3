"""The machinery under the stages: Ray Data over vLLM actors, Ray Train over DeepSpeed, and a scripted fake for tests."""
