/* A simulated accelerator for TFLite: an external delegate that takes every node and has the runtime's own kernels
   compute them. Built by tests/unit/delegates.py. With -DTAKES_NOTHING it takes none, as a real one does with a model
   that was not compiled for it; with -DABSENT its device is not plugged in.

   The structures are the start of those in TensorFlow Lite's c_api (core/c/common.h), as far as they are used here. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct { int size; int data[]; } Indices;
struct Context;
struct Delegate;
typedef struct { Indices *inputs, *outputs, *intermediates, *temporaries; void *user_data; void *rest[8]; } Node;
typedef struct {
    void *(*init)(struct Context *, const char *, size_t);
    void (*free)(struct Context *, void *);
    int (*prepare)(struct Context *, Node *);
    int (*invoke)(struct Context *, Node *);
    const char *(*profiling_string)(const struct Context *, const Node *);
    int32_t builtin_code;
    const char *custom_name;
    int version;
    void *external, *async_kernel;
    uint64_t inplace;
} Kernel;
typedef struct Context {
    size_t n_tensors;
    int (*plan)(struct Context *, Indices **);
    void *tensors, *impl;
    void *resize_tensor, *report_error, *add_tensors;
    int (*node)(struct Context *, int, Node **, Kernel **);
    int (*replace)(struct Context *, Kernel, const Indices *, struct Delegate *);
} Context;
typedef struct Delegate {
    void *data;
    int (*prepare)(Context *, struct Delegate *);
    void *from_handle, *to_handle, *free_handle;
    int64_t flags;
    void *opaque;
} Delegate;
typedef struct { Delegate *delegate; Indices *nodes, *inputs, *outputs; } Part;

/* What one part of the graph consists of. Copies: the runtime lets nobody look nodes up later, and may move them. */
typedef struct { int n; struct { Node node; Kernel kernel; } at[]; } Work;

static void *begin(Context *context, const char *buffer, size_t length) {
    const Indices *nodes = ((const Part *)buffer)->nodes;
    Work *work = malloc(sizeof *work + nodes->size * sizeof work->at[0]);
    work->n = nodes->size;
    for (int i = 0; i < work->n; i++) {
        Node *node;
        Kernel *kernel;
        context->node(context, nodes->data[i], &node, &kernel);
        memcpy(&work->at[i].node, node, sizeof *node);
        work->at[i].kernel = *kernel;
    }
    (void)length;
    return work;
}

static void end(Context *context, void *work) {
    (void)context;
    free(work);
}

static int prepare_part(Context *context, Node *node) {
    (void)context, (void)node;
    return 0;
}

static int compute(Context *context, Node *node) {
    Work *work = node->user_data;
    int failed = 0;
    for (int i = 0; i < work->n && !failed; i++) failed = work->at[i].kernel.invoke(context, &work->at[i].node);
    return failed;
}

static int take(Context *context, Delegate *delegate) {
#ifdef TAKES_NOTHING
    (void)context, (void)delegate;
    return 0;
#else
    Indices *plan;
    context->plan(context, &plan);
    size_t bytes = sizeof *plan + plan->size * sizeof(int);
    Indices *all = memcpy(malloc(bytes), plan, bytes);
    Kernel kernel = {.init = begin, .free = end, .prepare = prepare_part, .invoke = compute,
                     .custom_name = "SimulatedDelegate", .version = 1};
    int failed = context->replace(context, kernel, all, delegate);
    free(all);
    return failed;
#endif
}

Delegate *tflite_plugin_create_delegate(char **keys, char **values, size_t n, void (*report)(const char *)) {
    (void)keys, (void)values, (void)n;
#ifdef ABSENT
    report("no simulated device is plugged in");
    return NULL;
#else
    (void)report;
    Delegate *delegate = calloc(1, sizeof *delegate);
    delegate->prepare = take;
    return delegate;
#endif
}

void tflite_plugin_destroy_delegate(Delegate *delegate) { free(delegate); }
