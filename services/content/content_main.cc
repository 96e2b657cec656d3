#include "services/content/main.h"

int main(int argc, char** argv) { return bulkhead::ContentMain(argc, argv); }
