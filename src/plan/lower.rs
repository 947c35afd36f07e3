//! Lowering: a graph, its weight layouts and an adapter's capabilities become launches.

use crate::caps::Caps;
use crate::dtype::Activations;
use crate::error::{Error, Result};
use crate::graph::{Graph, HeadNorm, Heads, Node, Op, Out, Scores, Spans, VectorId, WeightId};
use crate::kernels::pack::Order;
use crate::kernels::{
    Dispatch, PAGE, Rows, activate, add, attention, attention_merge, attention_prefill, combine, embed, gemm,
    gemm_coop, gemm_merge, gemv, gemv_int8, gemv_lanes, gemv_staged, glu, group, head_norm, layer_norm,
    permute, ring_pages, rms_norm, rope_kv, route, sample, sample_scan, tuning,
};
use crate::plan::memory::{self, Memory};
use crate::plan::{Kept, Launch, Plan, PlanOptions, Resource, Shard, SlotId, WeightLayout, Work, fuse, work};
use crate::shape::{MAX_COLS, padded, round_up, stored_head_dim};

/// Makes the plan for `graph`. `layouts` are those of the graph's matrices, in order.
pub fn lower(graph: &Graph, layouts: &[WeightLayout], caps: &Caps, options: &PlanOptions) -> Result<Plan> {
    if layouts.len() != graph.weights.len() {
        let message = format!("{} layouts for {} matrices", layouts.len(), graph.weights.len());
        return Err(Error::shape("plan", message));
    }
    if let Some(unknown) = options.keep.iter().find(|name| graph.find(name).is_none()) {
        return Err(Error::option("capture", format!("the graph has no node '{unknown}'")));
    }
    let target = fuse::Target {
        keep: &options.keep,
        layouts,
        norm: tuning::norm_prologue(caps, options.max_tokens),
        head_norm: tuning::head_norm_prologue(caps, options.max_tokens),
        glu: tuning::glu_epilogue(caps, options.max_tokens),
        caps,
        attention_groups: tuning::attention_groups(caps, options.max_tokens),
        pages: options.context.div_ceil(PAGE),
        // Tiles are of rows that follow one another.
        tiling: tuning::tiling(caps, options.max_tokens, options.activations)
            .filter(|_| layouts.iter().flat_map(|l| &l.shards).all(|s| s.planes.order == Order::Rows)),
    };
    let graph = if options.fuse { fuse::fuse(graph, &target) } else { graph.clone() };
    let capacity = |rows| match rows {
        Rows::Tokens | Rows::Chosen(_) => round_up(options.max_tokens, MAX_COLS),
        Rows::Outputs => round_up(options.max_outputs, MAX_COLS),
    };
    let memory = memory::assign(
        &graph,
        |i| capacity(graph.nodes[i].rows) * pitch(&graph.nodes[i]),
        |i| options.keep.contains(&graph.nodes[i].name),
    );
    let mut lowering =
        Lowering { graph: &graph, layouts, caps, options, memory, launches: Vec::new(), groups: None };
    for i in 0..graph.nodes.len() {
        lowering.node(i);
    }
    let output = graph.nodes.len().checked_sub(1).ok_or_else(|| Error::shape("graph", "it has no nodes"))?;
    let output = lowering.kept(output);
    let kept = (0..graph.nodes.len())
        .filter(|&i| options.keep.contains(&graph.nodes[i].name))
        .map(|i| lowering.kept(i))
        .collect();
    let choosing = lowering.launches.len();
    if options.choose {
        lowering.choose(&output);
    }
    let Lowering { memory, launches, .. } = lowering;
    let vocab = graph.vocab();
    let (options, slots) = (options.clone(), memory.sizes);
    let plan = Plan { options, graph, launches, choosing, slots, vocab, output, kept };
    check(&plan, caps)?;
    Ok(plan)
}

/// Values from one row of a node's result to the next.
pub fn pitch(node: &Node) -> usize {
    match node.op {
        Op::RopeKv { heads, .. } => padded(heads.heads * stored_head_dim(heads.head_dim)),
        _ => node.pieces * padded(node.width / node.pieces),
    }
}

/// Every slot must fit one binding, and every grid what an adapter launches.
fn check(plan: &Plan, caps: &Caps) -> Result<()> {
    let (tokens, outputs) = (plan.options.max_tokens, plan.options.max_outputs);
    for Launch { name, dispatch, .. } in &plan.launches {
        let rows = u32::try_from(dispatch.rows.count(tokens, outputs)).unwrap_or(u32::MAX);
        if let Some(n) = dispatch.grid.size(rows, caps.max_groups).into_iter().find(|n| *n > caps.max_groups)
        {
            let most = caps.max_groups;
            let message = format!("{tokens} tokens at a time take {n} workgroups for {name}, at most {most}");
            return Err(Error::option("chunk", message));
        }
    }
    let limit = caps.max_storage_binding.min(caps.max_buffer);
    let largest = plan.slots.iter().copied().max().unwrap_or(0) as u64 * 4;
    if largest > limit {
        let tokens = plan.options.max_tokens as u64;
        return Err(Error::OutOfMemory {
            what: format!("activations of {tokens} tokens"),
            need: largest,
            limit,
            help: format!("process at most {} tokens at a time", tokens * limit / largest),
        });
    }
    Ok(())
}

struct Lowering<'a> {
    graph: &'a Graph,
    layouts: &'a [WeightLayout],
    caps: &'a Caps,
    options: &'a PlanOptions,
    memory: Memory,
    launches: Vec<Launch>,
    /// Rows grouped by experts, if there are any.
    groups: Option<SlotId>,
}

impl Lowering<'_> {
    fn slot(&self, node: usize) -> Resource {
        Resource::Slot(self.memory.slot[node])
    }

    /// A launch for a node, or for one shard of its matrix.
    fn push(&mut self, node: usize, dispatch: Dispatch, bindings: Vec<Resource>, shard: Option<&Shard>) {
        let node = &self.graph.nodes[node];
        let matrix = shard.map(|s| (s.rows, s.planes.format));
        self.launches.push(Launch {
            name: node.name.clone(),
            dispatch,
            bindings,
            // Of a table only the tokens' rows are read, which count as activations.
            weight_bytes: match (shard, &node.op) {
                (None, _) | (_, Op::Embed { .. }) => 0,
                (Some(s), _) => s.planes.quant_bytes + s.planes.scale_bytes,
            },
            work: work::of(self.graph, node, self.options.kv, matrix),
        });
    }

    fn kept(&self, node: usize) -> Kept {
        let n = &self.graph.nodes[node];
        let (run, step) = match n.op {
            Op::RopeKv { heads, .. } => (heads.head_dim, stored_head_dim(heads.head_dim)),
            _ => (n.width / n.pieces, padded(n.width / n.pieces)),
        };
        Kept {
            name: n.name.clone(),
            slot: self.memory.slot[node],
            width: n.width,
            run,
            step,
            pitch: pitch(n),
            rows: n.rows,
        }
    }

    fn node(&mut self, i: usize) {
        let node = &self.graph.nodes[i];
        let (out, caps) = (self.slot(i), self.caps);
        let input = |k: usize| node.inputs.get(k).map_or(out, |n| self.slot(n.0));
        let kv = self.options.kv;
        match node.op {
            Op::Embed { table, scale } => self.embed(i, table, scale),
            Op::HeadNorm { norm, heads } => {
                let widths = [heads.heads, heads.kv_heads].map(|count| count * heads.head_dim);
                let spans = if norm.spans == Spans::All { widths } else { [heads.head_dim; 2] };
                let factors = [norm.q, norm.k].map(|vector| self.graph.vectors[vector.0].len());
                let problem =
                    head_norm::HeadNorm { widths, spans, factors, centred: norm.centred, eps: norm.eps };
                let bindings = vec![input(0), Resource::Vector(norm.q), Resource::Vector(norm.k), out];
                self.push(i, head_norm::select(&problem, caps), bindings, None);
            }
            Op::RmsNorm { weight, eps, add } => {
                let problem = rms_norm::RmsNorm { width: node.width, eps, rows: node.rows, add };
                let bindings = vec![input(0), Resource::Vector(weight), out];
                self.push(i, rms_norm::select(&problem, caps), bindings, None);
            }
            Op::Linear { weight, bias } => self.linear(i, weight, bias, None, Out::Store, 1),
            Op::FusedLinear { weight, bias, norm, out } => self.linear(i, weight, bias, norm, out, 1),
            Op::LinearSplit { weight, splits, out } => self.linear(i, weight, None, None, out, splits),
            Op::LinearMerge { splits, out } => {
                let dispatch = gemm_merge::select(node.width, sums_of(out), splits, caps);
                self.push(i, dispatch, vec![input(0), self.slot(i)], None);
            }
            Op::RopeKv { layer, heads, rope, norm } => {
                let rotated = self.graph.rotated(rope);
                let (heads, kv_heads, head_dim) = (heads.heads, heads.kv_heads, heads.head_dim);
                let ring = self.ring(self.graph.window(layer));
                let factors = |norm: HeadNorm| [norm.q, norm.k].map(|v| self.graph.vectors[v.0].len());
                let normed = norm.map(|norm| (factors(norm), norm.eps));
                let problem = rope_kv::RopeKv { heads, kv_heads, head_dim, rotated, ring, norm: normed, kv };
                // Without a norm any buffer that is read does for its factors.
                let table = Resource::Rope(rope.map_or(0, |id| id.0));
                let [q, k] = norm.map_or([table; 2], |norm| [norm.q, norm.k].map(Resource::Vector));
                let bindings =
                    vec![input(0), table, out, Resource::Keys(layer), Resource::Values(layer), q, k];
                self.push(i, rope_kv::select(&problem, caps), bindings, None);
            }
            Op::Route { chosen, normalised } => self.route(i, chosen, normalised),
            Op::ExpertLinear { weight, norm, out } => self.expert_linear(i, weight, norm, out),
            Op::Combine { add } => {
                let chosen = self.graph.nodes[node.inputs[0].0].pieces;
                let bindings = vec![input(0), input(if add { 2 } else { 1 }), out];
                self.push(i, combine::select(node.width, chosen, add, caps), bindings, None);
            }
            Op::Attention { layer, heads, scores } => self.attention(i, layer, heads, scores, 1),
            Op::AttentionSplit { layer, heads, scores, splits } => {
                self.attention(i, layer, heads, scores, splits);
            }
            Op::AttentionMerge { heads, scores, splits } => {
                let dispatch =
                    attention_merge::select(heads.heads, heads.head_dim, scores.window, splits, caps);
                self.push(i, dispatch, vec![input(0), out], None);
            }
            Op::Glu(act) => {
                self.push(
                    i,
                    glu::select(node.width / node.pieces, node.pieces, act, caps),
                    vec![input(0), out],
                    None,
                );
            }
            Op::Activate(act) => {
                // Pieces of a row follow one another as rows do.
                let width = pitch(node);
                let dispatch = activate::select(width, activate::Function::Act(act), node.rows, caps);
                self.push(i, dispatch, vec![input(0), out], None);
            }
            Op::SoftCap { cap } => {
                let dispatch =
                    activate::select(node.width, activate::Function::SoftCap(cap), node.rows, caps);
                self.push(i, dispatch, vec![input(0), out], None);
            }
            Op::LayerNorm { weight, bias, eps } => {
                let problem = rms_norm::RmsNorm { width: node.width, eps, rows: node.rows, add: false };
                let bindings = vec![input(0), Resource::Vector(weight), Resource::Vector(bias), out];
                self.push(i, layer_norm::select(&problem, caps), bindings, None);
            }
            Op::Permute { order } => {
                let bindings = vec![input(0), Resource::Vector(order), out];
                self.push(i, permute::select(node.width, node.rows, caps), bindings, None);
            }
            Op::Add { scale } => {
                let bindings = vec![input(0), input(1), out];
                self.push(i, add::select(node.width, scale, node.rows, caps), bindings, None);
            }
        }
    }

    /// Pages of a layer with a window, where it does not have them all.
    fn ring(&self, window: Option<usize>) -> Option<usize> {
        ring_pages(window, self.options.slack?, self.options.context)
    }

    /// The choice of the next tokens from the logits.
    fn choose(&mut self, logits: &Kept) {
        let (vocab, outputs) = (logits.width, self.options.max_outputs);
        let mut slot = |floats: usize| {
            self.memory.sizes.push(floats);
            Resource::Slot(SlotId(self.memory.sizes.len() - 1))
        };
        let values = slot(outputs * logits.pitch);
        let tops = slot(outputs * sample::runs(vocab, self.caps));
        let mut push = |name: &str, dispatch, bindings| {
            // The logits are read and written, and read once more in part.
            let work = Work { row_bytes: 3 * vocab * 4, ..Work::default() };
            self.launches.push(Launch { name: name.to_string(), dispatch, bindings, weight_bytes: 0, work });
        };
        let (choices, counts) = (Resource::Choices, Resource::Counts);
        push(
            "choice.scan",
            sample_scan::select(vocab, self.caps),
            vec![Resource::Slot(logits.slot), choices, counts, values, tops],
        );
        push("choice", sample::select(vocab, self.caps), vec![values, tops, choices, counts, Resource::Next]);
    }

    fn attention(&mut self, i: usize, layer: usize, heads: Heads, scores: Scores, splits: usize) {
        let input = self.slot(self.graph.nodes[i].inputs[0].0);
        let problem = attention::Attention {
            heads: heads.heads,
            kv_heads: heads.kv_heads,
            head_dim: heads.head_dim,
            scale: scores.scale,
            window: scores.window,
            cap: scores.cap,
            ring: self.ring(scores.window),
            kv: self.options.kv,
            splits,
        };
        let bindings = vec![input, Resource::Keys(layer), Resource::Values(layer), self.slot(i)];
        let tiled = attention_prefill::select(&problem, self.options.max_tokens, self.caps);
        self.push(i, tiled.unwrap_or_else(|| attention::select(&problem, self.caps)), bindings, None);
    }

    fn embed(&mut self, i: usize, table: WeightId, scale: f32) {
        let layouts = self.layouts;
        for (shard, s) in layouts[table.0].shards.iter().enumerate().filter(|(_, s)| s.rows > 0) {
            let problem = embed::Embed {
                format: s.planes.format,
                order: s.planes.order,
                width: self.graph.nodes[i].width,
                first_row: s.first,
                rows: s.rows,
                scale,
            };
            let bindings = vec![
                Resource::Quants { weight: table, shard },
                Resource::Scales { weight: table, shard },
                self.slot(i),
            ];
            self.push(i, embed::select(&problem, self.caps), bindings, Some(s));
        }
    }

    /// Rows that share the weights of an expert.
    fn expert_group(&self) -> Option<usize> {
        tuning::expert_group(self.caps, self.options.max_tokens, self.options.activations)
    }

    fn route(&mut self, i: usize, chosen: usize, normalised: bool) {
        let input = self.graph.nodes[i].inputs[0];
        let experts = self.graph.nodes[input.0].width;
        let bindings = vec![self.slot(input.0), self.slot(i)];
        self.push(i, route::select(experts, chosen, normalised, self.caps), bindings, None);
        let Some(size) = self.expert_group() else { return };
        let tokens = self.options.max_tokens;
        // The groups of a layer take the place of those of the one before.
        let groups = *self.groups.get_or_insert_with(|| {
            self.memory.sizes.push(0);
            SlotId(self.memory.sizes.len() - 1)
        });
        let words = &mut self.memory.sizes[groups.0];
        *words = (*words).max(group::words(tokens, experts, chosen, size));
        let bindings = vec![self.slot(i), Resource::Slot(groups)];
        self.push(i, group::select(tokens, experts, chosen, size), bindings, None);
    }

    fn expert_linear(&mut self, i: usize, weight: WeightId, norm: Option<(VectorId, f32)>, out: Out) {
        let node = &self.graph.nodes[i];
        let spec = &self.graph.weights[weight.0];
        let [x, routes] = [node.inputs[0], node.inputs[1]];
        let size = self.expert_group();
        let outputs = node.width / node.pieces;
        let layouts = self.layouts;
        for (shard, s) in layouts[weight.0].shards.iter().enumerate() {
            // Rows that no bundle holds go one by one, also where others have groups.
            let size = size.filter(|_| s.planes.order == tuning::order(self.caps));
            let routes = match self.groups.filter(|_| size.is_some()) {
                Some(groups) => Resource::Slot(groups),
                None => self.slot(routes.0),
            };
            let experts = gemv::Experts {
                all: spec.matrices,
                chosen: node.pieces,
                shared: self.graph.nodes[x.0].pieces == 1,
                first: s.matrices.0,
                count: s.matrices.1,
                each: s.each,
                size,
            };
            let problem = gemv::Gemv {
                format: s.planes.format,
                order: s.planes.order,
                inputs: spec.cols,
                outputs,
                rows: rows_to_compute(s, spec.matrix_rows(), out),
                first: s.first,
                stride: s.stride,
                out: sums_of(out),
                norm: norm.map(|(_, eps)| eps),
                activations: match self.options.activations {
                    Activations::Int8 => Activations::F32,
                    other => other,
                },
                bytes: tuning::bytes(self.caps),
                bias: false,
                experts: Some(experts),
                batch: node.rows,
                max_batch: self.options.max_tokens,
            };
            let dispatch = product(&problem, 1, self.caps);
            let quants = Resource::Quants { weight, shard };
            let scales = Resource::Scales { weight, shard };
            let gain = norm.map_or(quants, |(gain, _)| Resource::Vector(gain));
            let mut bindings = vec![quants, scales, self.slot(x.0), self.slot(i), routes, quants, gain];
            bindings.truncate(dispatch.variant.kernel().bindings.len());
            self.push(i, dispatch, bindings, Some(s));
        }
    }

    fn linear(
        &mut self,
        i: usize,
        weight: WeightId,
        bias: Option<VectorId>,
        norm: Option<(VectorId, f32)>,
        out: Out,
        splits: usize,
    ) {
        let node = &self.graph.nodes[i];
        let spec = &self.graph.weights[weight.0];
        let x = self.memory.slot[node.inputs[0].0];
        let max_batch = match node.rows {
            Rows::Tokens | Rows::Chosen(_) => self.options.max_tokens,
            Rows::Outputs => self.options.max_outputs,
        };
        let layouts = self.layouts;
        for (shard, s) in layouts[weight.0].shards.iter().enumerate() {
            let problem = gemv::Gemv {
                format: s.planes.format,
                order: s.planes.order,
                inputs: spec.cols,
                outputs: node.width / splits,
                rows: rows_to_compute(s, spec.rows, out),
                first: s.first,
                stride: s.stride,
                out: if splits > 1 { gemv::Out::Store } else { sums_of(out) },
                norm: norm.map(|(_, eps)| eps),
                activations: self.options.activations,
                bytes: tuning::bytes(self.caps),
                bias: bias.is_some(),
                experts: None,
                batch: node.rows,
                max_batch,
            };
            let dispatch = product(&problem, splits, self.caps);
            if let Some(vectors) = dispatch.variant.number("X4") {
                // A uniform binding is as long as its array, whatever the batch.
                let size = &mut self.memory.sizes[x.0];
                *size = (*size).max(vectors as usize * 4);
            }
            let quants = Resource::Quants { weight, shard };
            // A kernel without a bias or norm leaves that binding unused; any buffer does.
            let vector = |v: Option<VectorId>| v.map_or(quants, Resource::Vector);
            let mut bindings = vec![
                quants,
                Resource::Scales { weight, shard },
                Resource::Slot(x),
                self.slot(i),
                quants,
                vector(bias),
                vector(norm.map(|(gain, _)| gain)),
            ];
            // Tiled products declare the same but for the last, the gain.
            bindings.truncate(dispatch.variant.kernel().bindings.len());
            self.push(i, dispatch, bindings, Some(s));
        }
    }
}

/// The kernel for a product on an adapter.
fn product(problem: &gemv::Gemv, splits: usize, caps: &Caps) -> Dispatch {
    match problem.order {
        Order::Bundles if caps.subgroup.is_some() => gemv_lanes::select(problem, caps),
        Order::Bundles => gemv::select(problem, caps),
        Order::Rows => gemm_coop::select(problem, splits, caps)
            .or_else(|| gemm::select(problem, splits, caps))
            .or_else(|| gemv_int8::select(problem, caps))
            .or_else(|| gemv_staged::select(problem, caps))
            .unwrap_or_else(|| gemv::select(problem, caps)),
    }
}

/// What a kernel is to do with the sums of a linear.
pub(super) fn sums_of(out: Out) -> gemv::Out {
    match out {
        Out::Store => gemv::Out::Store,
        Out::Add => gemv::Out::Add,
        Out::Glu(act) => gemv::Out::Glu(act),
    }
}

/// Rows of a shard of a matrix of `rows` rows that a launch computes: those whose outputs lie
/// in a row of the result, padding included.
fn rows_to_compute(shard: &Shard, rows: usize, out: Out) -> usize {
    match out {
        // Two rows make one output, so that the result's padding takes twice as many.
        Out::Glu(_) => shard.computed,
        Out::Store | Out::Add => {
            (padded(rows).saturating_sub(shard.first)).div_ceil(shard.stride).min(shard.computed)
        }
    }
}
