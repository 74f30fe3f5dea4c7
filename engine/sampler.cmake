perch_sources(sampler.c candidates.c sampling_check.c philox.c stop.c)
