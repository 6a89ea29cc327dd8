// Runs a SavedModel on TensorFlow's C library only, with the loader that TensorFlow Serving uses.
//
//   saved_model <folder> <input op> <output op> <output index> <file> <dimension> ...
//
// The file contains the float32 input, with the given dimensions. Prints the output, one number per line. Then reads
// numbers of runs from standard input, one per line, and prints the mean time of a run in seconds for each.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <vector>

#include "tensorflow/c/c_api.h"

static void check(TF_Status* status, const char* what) {
  if (TF_GetCode(status) == TF_OK) return;
  std::fprintf(stderr, "%s: %s\n", what, TF_Message(status));
  std::exit(1);
}

static TF_Output output_of(TF_Graph* graph, const char* name, int index) {
  TF_Operation* operation = TF_GraphOperationByName(graph, name);
  if (operation) return {operation, index};
  std::fprintf(stderr, "no operation %s in the graph\n", name);
  std::exit(1);
}

int main(int argc, char** argv) {
  if (argc < 7) return 2;
  TF_Status* status = TF_NewStatus();
  TF_SessionOptions* options = TF_NewSessionOptions();
  TF_Graph* graph = TF_NewGraph();
  const char* tag = "serve";
  TF_Session* session = TF_LoadSessionFromSavedModel(options, nullptr, argv[1], &tag, 1, graph, nullptr, status);
  check(status, "load");

  std::vector<int64_t> shape;
  size_t bytes = sizeof(float);
  for (int i = 6; i < argc; i++) {
    shape.push_back(std::atoll(argv[i]));
    bytes *= shape.back();
  }
  TF_Tensor* input = TF_AllocateTensor(TF_FLOAT, shape.data(), shape.size(), bytes);
  if (!std::ifstream(argv[5], std::ios::binary).read(static_cast<char*>(TF_TensorData(input)), bytes)) return 3;

  TF_Output from = output_of(graph, argv[2], 0), to = output_of(graph, argv[3], std::atoi(argv[4]));
  auto run = [&] {
    TF_Tensor* result = nullptr;
    TF_SessionRun(session, nullptr, &from, &input, 1, &to, &result, 1, nullptr, 0, nullptr, status);
    check(status, "run");
    return result;
  };
  TF_Tensor* result = run();
  const float* values = static_cast<const float*>(TF_TensorData(result));
  for (int64_t i = 0; i < TF_TensorElementCount(result); i++) std::printf("%.9g\n", values[i]);
  TF_DeleteTensor(result);
  std::fflush(stdout);

  for (int runs; std::scanf("%d", &runs) == 1;) {
    auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < runs; i++) TF_DeleteTensor(run());
    std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    std::printf("%.9g\n", taken.count() / runs);
    std::fflush(stdout);
  }

  TF_DeleteTensor(input);
  TF_CloseSession(session, status);
  TF_DeleteSession(session, status);
  TF_DeleteGraph(graph);
  TF_DeleteSessionOptions(options);
  TF_DeleteStatus(status);
}
