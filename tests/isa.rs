//! The kernels as a real GPU compiler reads them: Mesa's RADV, which needs no GPU to compile. What a kernel
//! costs in instructions shows here on any machine, and a change for the worse fails.
//!
//! `make isa` runs the ignored test, which writes docs/ISA.md.

#[path = "support/assembly.rs"]
mod assembly;
#[path = "support/radv.rs"]
mod radv;
mod support;

use std::collections::HashSet;
use std::fmt::Write;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use assembly::{Counts, inner_loop};
use radv::{Compiled, Radv};
use wgllama::kernels::link::link;
use wgllama::kernels::pack::{Order, Planes};
use wgllama::kernels::{KERNELS, Part, Variant};
use wgllama::model::{Config, architecture};
use wgllama::plan::{PlanOptions, WeightLayout, lower};
use wgllama::shape::GROUP;
use wgllama::{Activations, Caps, KvFormat, WeightFormat};

/// GCN, RDNA2, and RDNA3, which has matrix instructions.
const FAMILIES: [&str; 3] = ["vega10", "navi21", "navi31"];

static GPUS: LazyLock<Option<Vec<Radv>>> = LazyLock::new(|| Radv::open_all(&FAMILIES));

/// The compilers of all families.
fn compilers() -> Option<&'static [Radv]> {
    match GPUS.as_deref() {
        Some(gpus) => Some(gpus),
        None => support::skip("Mesa's RADV, release 24 or newer,", "REQUIRE_RADV"),
    }
}

/// The one that tests hold the line on.
fn navi31() -> Option<&'static Radv> {
    compilers()?.iter().find(|gpu| gpu.family == "navi31")
}

/// Compiles all of `variants`, on all cores.
fn compile(gpu: &Radv, variants: &[Variant]) -> Vec<Compiled> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let work = || {
        let claim = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&i| i < variants.len());
        std::iter::from_fn(|| claim().map(|i| (i, gpu.compile(&variants[i])))).collect::<Vec<_>>()
    };
    let mut all = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|w| w.join().unwrap()).collect::<Vec<_>>()
    });
    all.sort_by_key(|(i, _)| *i);
    all.into_iter().map(|(_, compiled)| compiled).collect()
}

/// Every variant of every kernel that a GPU could be given, whatever it can do. Biases and the choice of rows
/// change no loop: mat-vecs with several columns are left out with them, which halves the number.
fn all_variants() -> Vec<Variant> {
    let mut seen = HashSet::new();
    let presets = [Caps::baseline(), Caps::amd(), Caps::nvidia()];
    let all = presets.iter().flat_map(|caps| KERNELS.iter().flat_map(|decl| (decl.variants)(caps)));
    let usual = |v: &Variant| !v.parts().any(|p| matches!(p, Part::BiasVector | Part::RowsOutputs));
    all.filter(|v| v.number("COLS").unwrap_or(1) == 1 || usual(v)).filter(|v| seen.insert(*v)).collect()
}

/// The variants in plans of Llama 2 7B: one token, a few, and a prompt.
fn variants_in_plans() -> Vec<Variant> {
    let mut config = Config::preset("llama-2-7b").unwrap();
    config.num_hidden_layers = 1;
    let graph = (architecture("llama").unwrap().graph)(&config).unwrap();
    let mut found = Vec::new();
    for caps in [Caps::nvidia(), Caps::amd()] {
        for format in WeightFormat::ALL {
            let layouts: Vec<_> = graph
                .weights
                .iter()
                .map(|w| WeightLayout::new(w, &vec![format; w.parts.len()], &caps).unwrap())
                .collect();
            // A few columns do not differ by format in what is said of them here.
            let usual = matches!(format, WeightFormat::F16 | WeightFormat::Q8_0 | WeightFormat::Q4_0);
            let tokens: &[usize] = if usual { &[1, 2, 4, 8, 512] } else { &[1, 512] };
            for (tokens, activations) in tokens.iter().flat_map(|n| Activations::ALL.map(|a| (*n, a))) {
                let options = PlanOptions { activations, ..PlanOptions::new(tokens, 1, KvFormat::F16) };
                let plan = lower(&graph, &layouts, &caps, &options).unwrap();
                found.extend(plan.launches.iter().map(|l| l.dispatch.variant));
            }
        }
    }
    let mut seen = HashSet::new();
    found.retain(|v| seen.insert(*v));
    found.sort_by_cached_key(|v| v.to_string());
    found
}

/// Whether a variant's source calls `function`.
fn calls(variant: &Variant, function: &str) -> bool {
    link(variant).source.contains(&format!("{function}("))
}

/// A kernel by its name.
fn is(variant: &Variant, kernel: &str) -> bool {
    variant.kernel().name == kernel
}

/// The mat-vecs whose lanes walk along rows.
fn is_gemv(variant: &Variant) -> bool {
    is(variant, "gemv") || is(variant, "gemv_int8") || is(variant, "gemv_staged")
}

/// Whether bytes become floats as NVIDIA's GPUs like it.
fn masks(variant: &Variant) -> bool {
    variant.parts().any(|p| p == Part::BytesMask)
}

fn normalises(variant: &Variant) -> bool {
    variant.parts().any(|p| p == Part::NormRms)
}

fn format(variant: &Variant) -> Option<WeightFormat> {
    variant.parts().find_map(|part| match part {
        Part::Weight(format) => Some(format),
        _ => None,
    })
}

/// Weights that a lane multiplies in one turn of a mat-vec's inner loop, by the 16-byte loads in it: so many for
/// a group of 32 columns, and the compiler may have unrolled the loop. None if the loads are others.
fn weights_per_turn(variant: &Variant, turn: &Counts) -> Option<usize> {
    if !is_gemv(variant) {
        return None;
    }
    let rows = variant.number("ROWS").unwrap_or(4) as usize;
    let quants = Planes::new(format(variant)?, Order::Rows, 1, GROUP).row_bytes().0.div_ceil(16);
    // Vectors of activations, and as many of gains: all of a group's, or what an invocation brings for others.
    let vectors = match variant.number("SPAN") {
        Some(span) => span as usize * GROUP / 4 / variant.number("WG")? as usize,
        None => GROUP / 4 * variant.number("COLS")? as usize,
    };
    let gains = if normalises(variant) { vectors / variant.number("COLS").unwrap_or(1) as usize } else { 0 };
    let loads = rows * quants + vectors + gains;
    let wide = turn.loads.get(&128).copied().unwrap_or(0);
    (wide > 0 && wide.is_multiple_of(loads)).then(|| wide / loads * rows * GROUP)
}

/// What a variant became: all of it, and its inner loop.
struct Read {
    variant: Variant,
    compiled: Compiled,
    all: Counts,
    inner: Counts,
}

impl Read {
    fn figure(&self, name: &str) -> u64 {
        *self.compiled.figures.get(name).unwrap_or_else(|| panic!("the driver has no figure '{name}'"))
    }

    /// Registers that went to memory, and bytes of memory for what found no register.
    fn spills(&self) -> u64 {
        self.figure("Spilled VGPRs") + self.figure("Spilled SGPRs") + self.figure("Scratch size")
    }

    /// Vector operations for each weight of a mat-vec's inner loop.
    fn per_weight(&self) -> Option<f64> {
        Some(self.inner.vector as f64 / weights_per_turn(&self.variant, &self.inner)? as f64)
    }
}

fn read(gpu: &Radv, variants: &[Variant]) -> Vec<Read> {
    let read = |(compiled, variant): (Compiled, &Variant)| {
        let all = Counts::of(&compiled.assembly.lines().collect::<Vec<_>>());
        let inner = Counts::of(&inner_loop(&compiled.assembly));
        Read { variant: *variant, compiled, all, inner }
    };
    compile(gpu, variants).into_iter().zip(variants).map(read).collect()
}

/// All variants on RDNA3, compiled once for all tests.
static NAVI31: LazyLock<Vec<Read>> =
    LazyLock::new(|| navi31().map_or(Vec::new(), |gpu| read(gpu, &all_variants())));

/// Fails with every complaint that `check` has.
fn hold(check: impl Fn(&Read) -> Option<String>) {
    let complaints: Vec<String> =
        NAVI31.iter().filter_map(|read| Some(format!("{}: {}", read.variant, check(read)?))).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn nothing_spills() {
    hold(|read| (read.spills() + read.all.scratch as u64 > 0).then(|| format!("spills {}", read.spills())));
}

/// Weight planes and activations. Scales, biases and what is added to come word by word.
#[test]
fn products_load_sixteen_bytes_at_a_time() {
    hold(|read| {
        let product = format(&read.variant).is_some() && !is(&read.variant, "embed");
        // Gate and up have their biases side by side.
        let pairs = read.variant.parts().any(|p| p == Part::BiasVector)
            // And some formats the bits that nibbles lack beside a scale, or beside more of them.
            || format(&read.variant).is_some_and(|f| f == WeightFormat::Q5_1 || f == WeightFormat::Q6_K);
        let narrow = read.all.loads.keys().any(|bits| !([32, 128].contains(bits) || pairs && *bits == 64));
        let scales = read.inner.loads.get(&32).copied().unwrap_or(0);
        let wide = read.all.loads.get(&128).copied().unwrap_or(0);
        // What others bring to workgroup memory an invocation does not load.
        let shared = if is(&read.variant, "gemv_staged") { GROUP / 4 } else { 0 };
        (product && (narrow || wide == 0 || scales > wide + shared))
            .then(|| format!("loads {:?}", read.all.loads))
    });
}

#[test]
fn special_instructions_appear_where_they_are_asked_for() {
    hold(|read| {
        let dot4 = calls(&read.variant, "dot4I8Packed") || calls(&read.variant, "dot4U8Packed");
        let wmma = calls(&read.variant, "coopMultiplyAdd");
        let found = (read.all.dot4 > 0, read.all.wmma > 0);
        (found != (dot4, wmma)).then(|| format!("v_dot4 and v_wmma: {found:?}"))
    });
}

/// Formats that no instruction decodes: a table of sixteen numbers. The compiler keeps a loop over rows that loads
/// nothing, where 32 weights take 240 to 300 operations.
fn is_looked_up(format: WeightFormat) -> bool {
    matches!(format, WeightFormat::IQ4_NL | WeightFormat::IQ4_XS)
}

/// Vector operations that a mat-vec for one token may spend on a weight. For f32, which has nothing to decode,
/// half an operation is for the norm and the addresses. With products of four bytes a norm shows: its squares and
/// gains alone are a quarter of an operation, and Q4_0 misses 1.5 by less than that.
fn limit(variant: &Variant) -> Option<f64> {
    if masks(variant) {
        return None;
    }
    let one = is_gemv(variant) && variant.number("COLS").unwrap_or(1) == 1;
    let limit = match format(variant)? {
        WeightFormat::Q4_0 if is(variant, "gemv_int8") && normalises(variant) => 1.55,
        _ if is(variant, "gemv_int8") => 1.5,
        // Where lanes read side by side, an address for each vector.
        WeightFormat::F32 if variant.parts().any(|p| p == Part::GroupsSpread) => 1.6,
        WeightFormat::F32 => 1.5,
        WeightFormat::F16 => 1.75,
        WeightFormat::BF16 => 2.5,
        WeightFormat::F8_E4M3 => 3.5,
        WeightFormat::F8_E5M2 => 3.0,
        WeightFormat::Q8_0 => 2.75,
        WeightFormat::Q4_0 | WeightFormat::Q4_1 | WeightFormat::U4 => 3.0,
        other if is_looked_up(other) => return None,
        // Four-bit floats become bytes in fifteen steps, four at a time.
        WeightFormat::MXFP4 => 7.25,
        _ => 4.5,
    };
    // Workgroup memory takes addresses, and what is brought to it a few operations.
    let memory = if is(variant, "gemv_staged") { 0.25 } else { 0.0 };
    one.then_some(limit + memory)
}

#[test]
fn a_weight_of_a_mat_vec_costs_few_instructions() {
    hold(|read| {
        let limit = limit(&read.variant)?;
        let Some(found) = read.per_weight() else {
            return Some(format!("the inner loop loads {:?}", read.inner.loads));
        };
        (found > limit)
            .then(|| format!("{found:.3} vector operations for a weight, at most {limit} are allowed"))
    });
}

/// A weight that serves several tokens is cheaper than as many tokens one by one.
#[test]
fn columns_of_a_mat_vec_share_what_a_weight_costs() {
    hold(|read| {
        let cols =
            read.variant.number("COLS").filter(|cols| (2..8).contains(cols) && !masks(&read.variant))?;
        let Some(found) = read.per_weight() else {
            return Some(format!("the inner loop loads {:?}", read.inner.loads));
        };
        // Quants in several planes, and scales that are products.
        let decoding = match format(&read.variant)? {
            other if is_looked_up(other) => return None,
            WeightFormat::MXFP4 => 4.0,
            other if other.block_len() > 32 || other == WeightFormat::Q5_0 || other == WeightFormat::Q5_1 => {
                1.5
            }
            _ => 0.0,
        };
        let most = f64::from(cols) * if cols < 4 { 3.0 } else { 2.0 } + decoding;
        (found > most).then(|| format!("{found:.3} vector operations for a weight and {cols} tokens"))
    });
}

#[test]
fn a_matrix_product_multiplies_and_adds() {
    hold(|read| {
        let share = read.inner.multiply_add as f64 / read.inner.vector as f64;
        let wide =
            read.inner.shared_loads.keys().all(|bits| *bits == 128) && !read.inner.shared_loads.is_empty();
        (is(&read.variant, "gemm") && (share < 0.75 || !wide))
            .then(|| format!("{share:.2} of {:?}", read.inner))
    });
}

#[test]
fn matrix_instructions_are_fed_from_workgroup_memory() {
    hold(|read| {
        let wide =
            read.inner.shared_loads.keys().all(|bits| *bits == 128) && !read.inner.shared_loads.is_empty();
        (is(&read.variant, "gemm_coop") && (read.inner.wmma == 0 || !wide))
            .then(|| format!("{:?}", read.inner))
    });
}

#[test]
fn assembly_is_read() {
    let text = "BB0:
	v_mov_b32_e32 v0, 0 ; 7e000280
BB1:
	buffer_load_b128 v[0:3], v4, s[0:3], 0 offen ; 00
	buffer_load_dword v5, v4, s[0:3], 0 offen ; 00
	v_dual_fmac_f32 v0, v1, v2 :: v_dual_mov_b32 v3, v4 ; 00
BB2:
	ds_load_b128 v[0:3], v4 ; 00
	v_dot4_i32_iu8 v0, v1, v2, v3 ; 00
	s_cbranch_scc1 BB2 ; 00
	v_fma_f32 v0, v1, v2, v3 ; 00
	v_add_f32_e32 v0, v1, v2 ; 00
	v_fmac_f32_e32 v0, v1, v2 ; 00
	s_branch BB1 ; 00
BB3:
	scratch_store_b32 off, v0, s0 ; 00
	s_endpgm ; 00
";
    let inner = Counts::of(&inner_loop(text));
    assert_eq!((inner.vector, inner.multiply_add, inner.dot4), (5, 3, 0));
    assert_eq!(inner.loads, [(32, 1), (128, 1)].into());
    assert!(inner.shared_loads.is_empty() && inner.scratch == 0);
    let all = Counts::of(&text.lines().collect::<Vec<_>>());
    assert_eq!((all.vector, all.dot4, all.scratch), (7, 1, 1));
    assert_eq!(all.shared_loads, [(128, 1)].into());
    assert!(inner_loop("BB0:\n\ts_branch BB1 ; 00\nBB1:\n\ts_endpgm ; 00\n").is_empty());
}

/// Numbers by width, as in `16 x 128 b`.
fn widths(loads: &std::collections::BTreeMap<u32, usize>) -> String {
    let words: Vec<String> = loads.iter().rev().map(|(bits, n)| format!("{n} x {bits}")).collect();
    words.join(", ")
}

/// Writes docs/ISA.md.
#[test]
#[ignore = "writes docs/ISA.md"]
fn report() {
    let Some(gpus) = compilers() else { return };
    let variants = variants_in_plans();
    let mut text = INTRODUCTION.replace("DRIVER", &gpus[0].driver);
    for gpu in gpus {
        let usable = |v: &&Variant| {
            (gpu.matrices || !calls(v, "coopMultiplyAdd")) && (gpu.family != "vega10" || !is(v, "gemv_int8"))
        };
        let usable: Vec<Variant> = variants.iter().filter(usable).copied().collect();
        write!(
            text,
            "\n## {}\n\n\
             | variant | VGPR | SGPR | LDS | spills | waves | lanes | vector | inner | per weight | multiply-add | \
             loads | LDS loads | dot4 | wmma |\n\
             |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|---|--:|--:|\n",
            gpu.family
        )
        .unwrap();
        for read in read(gpu, &usable) {
            let share = 100.0 * read.inner.multiply_add as f64 / read.inner.vector.max(1) as f64;
            writeln!(
                text,
                "| `{}` | {} | {} | {} | {} | {} | {} | {} | {} | {} | {share:.0} % | {} | {} | {} | {} |",
                read.variant,
                read.figure("VGPRs"),
                read.figure("SGPRs"),
                read.figure("LDS size"),
                read.spills(),
                read.figure("Subgroups per SIMD"),
                read.compiled.subgroup,
                read.all.vector,
                read.inner.vector,
                read.per_weight().map(|n| format!("{n:.2}")).unwrap_or_default(),
                widths(&read.inner.loads),
                widths(&read.inner.shared_loads),
                read.all.dot4,
                read.all.wmma,
            )
            .unwrap();
        }
    }
    std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/ISA.md"), text).unwrap();
}

const INTRODUCTION: &str = include_str!("support/isa_introduction.md");
