"""Load on a server that speaks OpenAI's API: what is sent when, what came back, and what that amounts to."""
