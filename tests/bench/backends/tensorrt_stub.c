/* Stands in for libnvinfer so that the real TensorRT bindings can be imported and read without a GPU.
   It has the nine functions that tensorrt.so leaves undefined. None does anything: a factory that
   returns null is also what the real library does on a machine that it cannot serve. */

void *createInferBuilder_INTERNAL(void *logger, int version) { return 0; }
void *createInferRefitter_INTERNAL(void *engine, void *logger, int version) { return 0; }
void *createInferRuntime_INTERNAL(void *logger, int version) { return 0; }
void *getBuilderPluginRegistry(int capability) { return 0; }
void *getPluginRegistry(void) { return 0; }
void *createNvOnnxParser_INTERNAL(void *network, void *logger, int version) { return 0; }
void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int version) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
_Bool initLibNvInferPlugins(void *logger, const char *space) { return 1; }
