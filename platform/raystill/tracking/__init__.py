"""MLflow: one run per training run, the registry of adapters, and how they are fetched."""

import os

# Here, because MLflow reads its environment when it is first imported, as modules of this package do.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
# MLflow's own timeout is minutes per call. Delivery retries by itself, and a job must be able to end.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
