"""The decoding engine: a process of its own behind two queues of small messages."""
