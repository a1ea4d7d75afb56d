/* The fake driver's graphs. It refuses uses that a card accepts and silently gets wrong: destroying an
 * executable graph while it runs, an event that was destroyed, a kernel whose module is unloaded. Among nodes
 * that do not depend on each other, the last runs first. */
#include "fake_machine.h"

using namespace fake;

namespace {

struct Node {
    Item item;
    std::set<const Node*> before;
    CUfunction function = nullptr;
};

bool is_event(const EventRef& event) { return event && driver().events.count(event.get()); }

bool is_function(CUfunction function) {
    Code* code = reinterpret_cast<Code*>(function);
    return driver().codes.count(code) && code->module->device == current;
}

}  // namespace

namespace fake {

struct Graph {
    Device* device;
    std::vector<std::unique_ptr<Node>> nodes; /* each node behind those that it depends on */
};

struct GraphExec {
    Device* device;
    std::shared_ptr<const std::vector<Item>> nodes;
    std::vector<CUfunction> functions; /* the distinct functions of its kernels */
    std::vector<EventRef> events;
    EventRef end; /* end of its last launch */
};

}  // namespace fake

namespace {

Graph* graph_of(CUgraph handle) {
    Graph* graph = reinterpret_cast<Graph*>(handle);
    return driver().graphs.count(graph) && graph->device == current ? graph : nullptr;
}

GraphExec* exec_of(CUgraphExec handle) {
    GraphExec* exec = reinterpret_cast<GraphExec*>(handle);
    return driver().graph_execs.count(exec) && exec->device == current ? exec : nullptr;
}

/* Adds a node that is complete except for its dependencies, which must be distinct nodes of the graph. */
int add_node(CUgraph handle, const CUgraphNode* before, size_t count, std::unique_ptr<Node> node, CUgraphNode* made) {
    Graph* graph = graph_of(handle);
    if (!graph || !made || (count && !before))
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t index = 0; index < count; index++) {
        const Node* one = reinterpret_cast<const Node*>(before[index]);
        bool is_here =
            std::any_of(graph->nodes.begin(), graph->nodes.end(), [&](auto& had) { return had.get() == one; });
        if (!is_here || !node->before.insert(one).second)
            return CUDA_ERROR_INVALID_VALUE;
    }
    *made = reinterpret_cast<CUgraphNode>(node.get());
    graph->nodes.push_back(std::move(node));
    return CUDA_SUCCESS;
}

/* The nodes in an order that their dependencies allow: among the nodes that are ready, the last one first. */
std::vector<const Node*> ordered(const Graph& graph) {
    std::vector<const Node*> found, left;
    for (const auto& node : graph.nodes)
        left.push_back(node.get());
    std::set<const Node*> done;
    while (!left.empty()) {
        auto next = std::find_if(left.rbegin(), left.rend(), [&](const Node* node) {
            return std::includes(done.begin(), done.end(), node->before.begin(), node->before.end());
        });
        done.insert(*next);
        found.push_back(*next);
        left.erase(std::next(next).base());
    }
    return found;
}

}  // namespace

EXPORTED CUresult cuGraphCreate(CUgraph* graph, unsigned flags) {
    BEGIN_CONTEXT(cuGraphCreate);
    if (!graph || flags)
        return CUDA_ERROR_INVALID_VALUE;
    Graph* made = new Graph{current, {}};
    all.graphs.insert(made);
    *graph = reinterpret_cast<CUgraph>(made);
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuGraphDestroy(CUgraph handle) {
    BEGIN(cuGraphDestroy);
    Graph* graph = reinterpret_cast<Graph*>(handle);
    if (!all.graphs.erase(graph))
        return CUDA_ERROR_INVALID_VALUE;
    delete graph;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuGraphAddKernelNode(CUgraphNode* node, CUgraph graph, const CUgraphNode* before, size_t before_count,
                                       const CUDA_KERNEL_NODE_PARAMS_v1* launch) {
    BEGIN_CONTEXT(cuGraphAddKernelNode);
    if (!launch || launch->extra)
        return CUDA_ERROR_INVALID_VALUE;
    const unsigned grid[3] = {launch->gridDimX, launch->gridDimY, launch->gridDimZ};
    const unsigned block[3] = {launch->blockDimX, launch->blockDimY, launch->blockDimZ};
    auto made = std::make_unique<Node>();
    made->function = launch->func;
    if (int error =
            make_launch(launch->func, grid, block, launch->sharedMemBytes, launch->kernelParams, guard, &made->item))
        return error;
    return add_node(graph, before, before_count, std::move(made), node);
}

EXPORTED CUresult cuGraphAddEventRecordNode(CUgraphNode* node, CUgraph graph, const CUgraphNode* before,
                                            size_t before_count, CUevent handle) {
    BEGIN_CONTEXT(cuGraphAddEventRecordNode);
    auto found = all.events.find(reinterpret_cast<Event*>(handle));
    if (found == all.events.end() || found->second->device != current)
        return CUDA_ERROR_INVALID_VALUE;
    auto made = std::make_unique<Node>();
    made->item.kind = Item::RECORD_IN_GRAPH;
    made->item.event = found->second;
    return add_node(graph, before, before_count, std::move(made), node);
}

EXPORTED CUresult cuGraphInstantiateWithFlags(CUgraphExec* exec, CUgraph handle, unsigned long long flags) {
    BEGIN_STALLING(cuGraphInstantiateWithFlags, false);
    const Graph* graph = graph_of(handle);
    if (!graph || !exec || flags)
        return CUDA_ERROR_INVALID_VALUE;
    auto made = std::make_unique<GraphExec>();
    made->device = current;
    made->end = std::make_shared<Event>();
    made->end->device = current;
    std::vector<Item> items;
    for (const Node* node : ordered(*graph)) {
        if (node->function) {
            if (!is_function(node->function))
                return CUDA_ERROR_INVALID_VALUE;
            if (std::find(made->functions.begin(), made->functions.end(), node->function) == made->functions.end())
                made->functions.push_back(node->function);
        }
        if (node->item.event)
            made->events.push_back(node->item.event);
        items.push_back(node->item);
    }
    made->nodes = std::make_shared<const std::vector<Item>>(std::move(items));
    all.graph_execs.insert(made.get());
    *exec = reinterpret_cast<CUgraphExec>(made.release());
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuGraphUpload(CUgraphExec exec, CUstream stream) {
    BEGIN_CONTEXT(cuGraphUpload);
    return exec_of(exec) && all.streams.count(reinterpret_cast<Stream*>(stream)) ? CUDA_SUCCESS
                                                                                 : CUDA_ERROR_INVALID_VALUE;
}

EXPORTED CUresult cuGraphLaunch(CUgraphExec handle, CUstream stream) {
    BEGIN_CONTEXT(cuGraphLaunch);
    GraphExec* exec = exec_of(handle);
    if (!exec || !std::all_of(exec->functions.begin(), exec->functions.end(), is_function))
        return CUDA_ERROR_INVALID_VALUE;
    for (const EventRef& event : exec->events) {
        if (!is_event(event))
            return CUDA_ERROR_INVALID_VALUE;
    }
    for (CUfunction function : exec->functions)
        have_local(local_bytes_of(function), guard);
    /* Launches of an executable graph run in sequence, whatever their streams. */
    Item item{Item::GRAPH};
    item.nodes = exec->nodes;
    item.event = exec->end;
    item.generation = exec->end->issued + 1;
    if (int error = queue(stream, std::move(item)))
        return error;
    exec->end->issued++;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuGraphExecDestroy(CUgraphExec handle) {
    BEGIN(cuGraphExecDestroy);
    GraphExec* exec = reinterpret_cast<GraphExec*>(handle);
    if (!all.graph_execs.count(exec) || (exec->end->done != exec->end->issued && !exec->device->broken))
        return CUDA_ERROR_INVALID_VALUE;
    all.graph_execs.erase(exec);
    delete exec;
    return CUDA_SUCCESS;
}
