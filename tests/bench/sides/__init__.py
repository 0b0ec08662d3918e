"""What is compared: Herd's own command, raw vLLM, Ray Data and `ray.data.llm`, each in a process of its own."""
