perch_sources(options.c option_value.c ini.c)
perch_unit_test(options_test options_test.c)
perch_unit_test(ini_test ini_test.c)
perch_unit_test(configuration_test configuration_test.c)
