#include "services/runtime/main.h"

int main(int argc, char** argv) { return bulkhead::RuntimeMain(argc, argv); }
