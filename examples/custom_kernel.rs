//! An own kernel: a shader, its declaration and one launch, run by the engine's executor.
//!
//! `cargo run --example custom_kernel`

use wgllama::gpu::{Buffers, Executable, StepTables};
use wgllama::graph::Batch;
use wgllama::kernels::{Access, Binding, Dispatch, Grid, KernelDecl, Part, Rows, Variant};
use wgllama::plan::{Launch, Plan, Resource, SlotId};
use wgllama::{Context, ContextOptions};

/// y[t, i] = a * x[t, i]: parts give the entry point and the number of tokens.
static SCALE: KernelDecl = KernelDecl {
    name: "scale",
    source: "
        struct Params { width: u32, a: f32 }
        @group(0) @binding(0) var<storage, read> x: array<f32>;        // [T, width]
        @group(0) @binding(1) var<storage, read_write> y: array<f32>;  // [T, width]
        @group(0) @binding(2) var<uniform> p: Params;

        fn kernel(group: vec3<u32>, team: Team, lane: Lane) {
            if (team.index < n_tokens() * p.width) {
                y[team.index] = p.a * x[team.index];
            }
        }",
    bindings: &[Binding { name: "x", access: Access::Read }, Binding { name: "y", access: Access::Write }],
    params: &[("width", "u32"), ("a", "f32")],
    variants: |_| vec![Variant::new(&SCALE, &[Part::Step, Part::LaneThread], &[("WG", 64)])],
};

fn main() -> wgllama::Result<()> {
    let (tokens, width) = (3, 32);
    let context = Context::new(&ContextOptions::default())?;
    let (x, y) = (SlotId(0), SlotId(1));
    let launch = Launch {
        name: "scaled".to_string(),
        dispatch: Dispatch {
            variant: (SCALE.variants)(context.caps())[0],
            params: vec![width as u32, 2.5f32.to_bits()],
            grid: Grid::Flat { per_row: width as u32, per_group: 64 },
            rows: Rows::Tokens,
        },
        bindings: vec![Resource::Slot(x), Resource::Slot(y)],
        weight_bytes: 0,
        work: Default::default(),
    };
    let plan = Plan::bare(vec![launch], vec![tokens * width; 2], tokens);
    print!("{plan}");

    let buffers = Buffers { weights: &[], vectors: &[], ropes: &[], keys: &[], values: &[], choices: None };
    let mut run = Executable::bind(&context, plan, buffers, 1, 1)?;
    let input: Vec<f32> = (0..tokens * width).map(|i| i as f32).collect();
    run.write_slot(x, &input)?;
    run.run(&Batch::sequence(&[0; 3], 0, 0), StepTables(&[vec![0]]))?;
    let result = pollster::block_on(run.read_slot(y, tokens * width))?;
    assert!(input.iter().zip(&result).all(|(a, b)| 2.5 * a == *b));
    println!("{:?} ...", &result[..4]);
    Ok(())
}
