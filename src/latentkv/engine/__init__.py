"""Many requests, one model: state, scheduler, sampler, runner, engine."""
