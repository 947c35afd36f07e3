//! Kernels at the shapes of real models, timed on the device where it has timestamps, as a
//! share of the copy and of the multiply-adds of the same run.
//!
//!     cargo bench                                  everything
//!     cargo bench -- gemv/q4_0                     rows whose name holds that
//!     cargo bench -- --test                        each row once
//!     cargo bench -- --ab thread/4/1/8 subgroup/4/1/128 q4_0
//!
//! The last takes turns with two divisions of a mat-vec (lane/rows/columns/invocations, and
//! /uniform for activations through a uniform binding) and prints the ratio of their times,
//! with the first against itself as a control. Criterion compares each row with the run
//! before. The rows `control/...` run no kernel of a model: they must not move.

mod cases;

use std::time::Duration;

use cases::{Case, Controls, FORMATS, LANES, SHAPES};
use criterion::{BenchmarkId, Criterion};
use wgllama::caps::AdapterKind;
use wgllama::kernels::Part;
use wgllama::kernels::tuning::{GemvShape, TILES};
use wgllama::plan::Traffic;
use wgllama::{Context, ContextOptions, KvFormat};

/// What was measured of a row: its name, the least seconds, and the work.
type Measured = (String, f64, Traffic);

struct Bench<'a> {
    criterion: &'a mut Criterion,
    context: &'a Context,
    measured: Vec<Measured>,
}

impl Bench<'_> {
    /// A row `group/name`; what it runs is made only if the row is wanted.
    fn row(&mut self, group: &str, name: &str, make: impl Fn(&Context) -> wgllama::Result<Case>) {
        let (mut case, mut best) = (None, f64::INFINITY);
        let context = self.context;
        let mut criterion_group = self.criterion.benchmark_group(group);
        criterion_group.bench_function(BenchmarkId::from_parameter(name), |b| {
            let case = case.get_or_insert_with(|| make(context).expect("a case"));
            b.iter_custom(|n| {
                let seconds = (0..n).map(|_| case.seconds(context).expect("a step"));
                let seconds = seconds.inspect(|s| best = best.min(*s));
                Duration::from_secs_f64(seconds.sum())
            });
        });
        criterion_group.finish();
        if let Some(case) = case {
            self.measured.push((format!("{group}/{name}"), best, case.traffic));
        }
    }
}

fn rows(bench: &mut Bench<'_>) {
    let cpu = bench.context.caps().kind == AdapterKind::Cpu;
    let subgroups = bench.context.caps().subgroup.is_some();
    bench.row("control", "copy", Case::copy);
    bench.row("control", "multiply-adds", Case::fma);
    bench.row("control", "empty step", Case::empty);
    // On a CPU the chunk of a prompt would take minutes, and the largest matrix gigabytes.
    let chunk = if cpu { 32 } else { 512 };
    let shapes = SHAPES.iter().filter(|s| !cpu || s.rows < 100_000);
    for shape in shapes {
        for format in FORMATS.into_iter().filter(|f| shape.cols.is_multiple_of(f.block_len())) {
            let name = |what: String| format!("{format}/{shape}/{what}");
            for tokens in [1, 8] {
                bench.row("gemv", &name(format!("{tokens}")), |c| {
                    Case::product(c, *shape, format, tokens, None)
                });
            }
            for lane in LANES.into_iter().filter(|l| subgroups || !l.needs_subgroup()) {
                let wg = match lane {
                    Part::LaneThread => 8,
                    Part::LaneSubgroup => 128,
                    _ => 64,
                };
                let split = GemvShape { lane, rows: 4, cols: 1, wg, uniform: false };
                bench.row("gemv", &name(format!("1/{}", cases::text(split))), |c| {
                    Case::product(c, *shape, format, 1, Some(cases::Split::Gemv(split)))
                });
            }
            if cases::multiplies_bytes(bench.context, format) {
                bench.row("gemv", &name("1/int8".to_string()), |c| {
                    Case::product(c, *shape, format, 1, Some(cases::Split::Int8))
                });
            }
            bench.row("gemm", &name(format!("{chunk}")), |c| Case::product(c, *shape, format, chunk, None));
            for tile in TILES.into_iter().filter(|_| !cpu) {
                let what = format!("{chunk}/tile{}", tile.size());
                bench.row("gemm", &name(what), |c| {
                    Case::product(c, *shape, format, chunk, Some(cases::Split::Gemm(tile)))
                });
            }
        }
    }
    for (model, heads, kv_heads, head_dim) in
        [("smollm2-135m", 9, 3, 64), ("llama-2-7b", 32, 32, 128), ("llama-3-8b", 32, 8, 128)]
    {
        let heads = wgllama::graph::Heads { heads, kv_heads, head_dim };
        for kv in KvFormat::ALL {
            for (tokens, depth) in [(1, 512), (1, 4096), (chunk, 0), (chunk, 4096 - chunk)] {
                let name = format!("{kv}/{model}/{tokens} at {depth}");
                bench.row("attention", &name, |c| Case::attention(c, heads, kv, tokens, depth, "attn"));
            }
            for tokens in [1, chunk] {
                let name = format!("{kv}/{model}/{tokens}");
                bench.row("rope_kv", &name, |c| Case::attention(c, heads, kv, tokens, 0, "q"));
            }
        }
    }
    for (model, hidden, wide) in [("smollm2-135m", 576, 1536), ("llama-2-7b", 4096, 11008)] {
        for tokens in [1, chunk] {
            bench.row("rms_norm", &format!("{model}/{tokens}"), |c| Case::rms_norm(c, hidden, tokens));
            bench.row("swiglu", &format!("{model}/{tokens}"), |c| Case::swiglu(c, wide, tokens));
        }
    }
}

/// The rows again, as rates and shares of the ceilings.
fn summary(measured: &[Measured], before: Controls, after: Controls) {
    println!("\n{before}\nand after all rows: {after}\n");
    println!("| row | us | GB/s | of copy | GFLOP/s | of multiply-adds |\n|---|---|---|---|---|---|");
    for (name, seconds, work) in measured {
        let (bytes, flops) = (work.bytes() / seconds, work.flops / seconds);
        println!(
            "| {name} | {:.1} | {:.2} | {:.0} % | {:.2} | {:.0} % |",
            seconds * 1e6,
            bytes / 1e9,
            100.0 * bytes / before.copy.max(after.copy),
            flops / 1e9,
            100.0 * flops / before.flops.max(after.flops),
        );
    }
}

/// `--ab A B [FILTER]`: two divisions of a mat-vec in turns.
fn ab(context: &Context, options: &[String]) -> Result<(), String> {
    const ROUNDS: usize = 20;
    let [a, b] = [0, 1].map(|i| options.get(i).ok_or("--ab needs two divisions").map(|s| cases::parse(s)));
    let (a, b) = (a??, b??);
    let filter = options.get(2).map_or("", String::as_str);
    println!("time of {} over that of {} (and over its own)", cases::text(b), cases::text(a));
    for shape in SHAPES {
        for format in FORMATS.into_iter().filter(|f| shape.cols.is_multiple_of(f.block_len())) {
            let name = format!("{format}/{shape}");
            if !name.contains(filter) {
                continue;
            }
            let make = |split| Case::product(context, shape, format, 1, Some(cases::Split::Gemv(split)));
            let [mut first, mut again, mut second] =
                [make(a), make(a), make(b)].map(|case| case.expect("a case"));
            let (mut control, mut ratio) = (Vec::new(), Vec::new());
            for round in 0..=ROUNDS {
                let turn = |case: &mut Case| case.seconds(context).expect("a step");
                // Whoever comes second must not gain by it.
                let (x, y, z) = if round % 2 == 0 {
                    (turn(&mut first), turn(&mut again), turn(&mut second))
                } else {
                    let z = turn(&mut second);
                    let y = turn(&mut again);
                    (turn(&mut first), y, z)
                };
                // The first round compiles.
                if round > 0 {
                    control.push(y / x);
                    ratio.push(z / x);
                }
            }
            let [(c, cd), (r, rd)] = [control, ratio].map(|v| cases::spread(&v));
            println!("{name}: {r:.3} ± {rd:.3} (control {c:.3} ± {cd:.3})");
        }
    }
    Ok(())
}

fn main() {
    let device = std::env::var("WGLLAMA_TEST_DEVICE").ok();
    let context = match Context::new(&ContextOptions { device, ..Default::default() }) {
        Ok(context) => context,
        Err(error) => return eprintln!("nothing measured: {error}"),
    };
    let clock = if context.caps().timestamps { "the device's" } else { "the CPU's" };
    eprintln!("on {} ({}), by {clock} clock", context.adapter().name, context.adapter().driver);
    let options: Vec<String> = std::env::args().collect();
    if let Some(at) = options.iter().position(|o| o == "--ab") {
        // Cargo adds an option of its own at the end.
        let rest: Vec<_> = options[at + 1..].iter().filter(|o| *o != "--bench").cloned().collect();
        if let Err(message) = ab(&context, &rest) {
            eprintln!("error: {message}");
            std::process::exit(2);
        }
        return;
    }
    let short = Duration::from_millis(500);
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(short)
        .measurement_time(2 * short)
        .configure_from_args();
    let test = options.iter().any(|o| o == "--test" || o == "--list");
    let measure = || if test { Controls::default() } else { Controls::measure(&context).expect("ceilings") };
    let before = measure();
    let mut bench = Bench { criterion: &mut criterion, context: &context, measured: Vec::new() };
    rows(&mut bench);
    let measured = bench.measured;
    if !test {
        summary(&measured, before, measure());
    }
    criterion.final_summary();
}
