"""Run, serve, compress, train and watch sparse mixture-of-experts language models."""
