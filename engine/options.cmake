perch_sources(options.c option_value.c ini.c)
