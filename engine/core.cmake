perch_sources(engine.c plan.c sequence.c request.c completion.c deadlines.c device.c disk.c batch.c observe.c times.c trace.c trace_format.c stats_file.c stats_snapshot.c step.c simulation.c simulated_device.c simulated_disk.c transfers.c events.c sched.c idtable.c
              persist.c stored.c fingerprint.c cost.c costs.c measure.c)
perch_unit_test(sched_test sched_test.c)
perch_unit_test(trace_test trace_test.c LABELS threads)
perch_unit_test(cost_test cost_test.c)
perch_unit_test(stats_file_test stats_file_test.c LABELS threads)
