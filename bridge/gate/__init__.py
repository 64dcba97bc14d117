"""Let a site on another machine reach its server or relay, and nobody else."""
