"""Training on several replicas: the only place that knows that there is more than one."""
