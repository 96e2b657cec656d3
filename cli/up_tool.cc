// `bulkhead up` alone, for its test.
#include "cli/up.h"

int main(int argc, char** argv) { return bulkhead::UpMain(argc, argv); }
