"""All that knows FLARE: controller, executor, channel, the job's folder, the console program."""
