//! Kernels at the shapes of real models: `cargo bench`, or `cargo bench -- q4_0` for some.
//!
//! Each row is a step of one plan: submit, run, wait. `ceiling/copy` is what the adapter moves
//! at best in the same run (bytes read and bytes written), `control/submit` the cost of a step
//! that does nothing; neither may move when a kernel changes.

#[path = "../tests/support/rig.rs"]
mod rig;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rig::{Rig, matrix};
use wgllama::gpu::{Buffers, Executable, StepTables};
use wgllama::graph::{Batch, Graph, Rope};
use wgllama::kernels::probe_copy;
use wgllama::plan::{Launch, Plan, PlanOptions, Resource, SlotId, lower};
use wgllama::{Context, ContextOptions, KvFormat, WeightFormat};

/// Outputs and inputs: the feed-forward parts of SmolLM2 135M, TinyLlama 1.1B and LLaMA 7B.
const SHAPES: [(usize, usize); 4] = [(3072, 576), (576, 1536), (11264, 2048), (4096, 11008)];

fn step(context: &Context, run: &mut Executable, tokens: usize) {
    let batch = Batch::sequence(&vec![0; tokens], 0, 0);
    run.run(&batch, StepTables(&[vec![0; 8]])).expect("a step");
    context.wait().expect("the device");
}

/// A plan that copies `floats` values: a read and a write for each.
fn copy(context: &Context, floats: usize) -> Executable {
    let slots = [SlotId(0), SlotId(1)];
    let launch = Launch {
        name: "copy".to_string(),
        dispatch: probe_copy::select(floats, context.caps()),
        bindings: slots.map(Resource::Slot).to_vec(),
        weight_bytes: 0,
        work: Default::default(),
    };
    let plan = Plan::bare(vec![launch], vec![floats; 2], 1);
    let rope = context.buffer("unused", 16, "").expect("a buffer");
    let buffers = Buffers { weights: &[], vectors: &[], rope: &rope, keys: &[], values: &[], choices: None };
    Executable::bind(context, plan, buffers, 1, 8).expect("a plan")
}

fn gemv(c: &mut Criterion, context: &Context) {
    let mut group = c.benchmark_group("gemv");
    for (rows, k) in SHAPES {
        for format in WeightFormat::ALL {
            let mut graph = Graph::new(Rope::plain(1e4, 2));
            let table = graph.weight(matrix("table", 2, k)).expect("a matrix");
            let w = graph.weight(matrix("w", rows, k)).expect("a matrix");
            let x = graph.embed("x", table);
            graph.linear("y", x, w, None).expect("a graph");
            let rig = Rig::new(graph, format, 1);
            let caps = context.caps();
            for tokens in [1, 64] {
                let options = PlanOptions::new(tokens, 1, KvFormat::F32);
                let plan = lower(&rig.graph, &rig.layouts(caps), caps, &options).expect("a plan");
                let mut run = rig.bind(context, caps, &plan, 1, 512);
                group.throughput(Throughput::Bytes(plan.weight_bytes() as u64));
                group.bench_function(format!("{format}/{rows}x{k}/{tokens}"), |b| {
                    b.iter(|| step(context, &mut run, tokens));
                });
            }
        }
    }
    group.finish();
}

fn ceilings(c: &mut Criterion, context: &Context) {
    let floats = 8 << 20;
    let mut large = copy(context, floats);
    let mut group = c.benchmark_group("ceiling");
    group.throughput(Throughput::Bytes(floats as u64 * 8));
    group.bench_function("copy", |b| b.iter(|| step(context, &mut large, 1)));
    group.finish();
    let mut nothing = copy(context, 256);
    c.bench_function("control/submit", |b| b.iter(|| step(context, &mut nothing, 1)));
}

fn all(c: &mut Criterion) {
    let context = match Context::new(&ContextOptions::default()) {
        Ok(context) => context,
        Err(error) => {
            eprintln!("nothing measured: {error}");
            return;
        }
    };
    eprintln!("on {} ({})", context.adapter().name, context.adapter().driver);
    ceilings(c, &context);
    gemv(c, &context);
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(std::time::Duration::from_secs(1));
    targets = all
}
criterion_main!(benches);
