//! Graphs with random weights, on the CPU reference and on the device.
#![allow(dead_code)]

use wgllama::gpu::{Buffer, Buffers, Context, Executable, Planes, StepTables};
use wgllama::graph::reference::Source;
use wgllama::graph::{Batch, Graph, Part, Rope, RowOrder, VectorId, VectorSpec, WeightId, WeightSpec};
use wgllama::kernels::PAGE;
use wgllama::kernels::pack::pack;
use wgllama::plan::{Plan, WeightLayout};
use wgllama::shape::padded;
use wgllama::{Caps, KvFormat, Result, WeightFormat, quant};

/// Uniform values between -1 and 1, with a rare outlier as real activations have.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n
    }

    pub fn values(&mut self, n: usize) -> Vec<f32> {
        let mut value = || self.next() as f32 / (1u64 << 30) as f32 - 1.0;
        (0..n).map(|i| if i % 97 == 96 { 20.0 * value() } else { value() }).collect()
    }
}

/// A graph's weights, encoded.
pub struct Rig {
    pub graph: Graph,
    formats: Vec<WeightFormat>,
    matrices: Vec<Vec<u8>>,
    vectors: Vec<Vec<f32>>,
}

pub fn matrix(name: &str, rows: usize, cols: usize) -> WeightSpec {
    let part = Part { tensor: name.to_string(), rows, order: RowOrder::Stored, within: None };
    WeightSpec { name: name.to_string(), rows, cols, parts: vec![part], interleaved: false, matrices: 1 }
}

pub fn vector(name: &str, len: usize) -> VectorSpec {
    let part = Part { tensor: name.to_string(), rows: len, order: RowOrder::Stored, within: None };
    VectorSpec { name: name.to_string(), parts: vec![part], interleaved: false, shift: 0.0, scale: 1.0 }
}

impl Rig {
    /// Random weights for `graph`: matrices in `format` where their rows are whole blocks, else
    /// in F32.
    pub fn new(graph: Graph, format: WeightFormat, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let formats: Vec<_> = graph
            .weights
            .iter()
            .map(|w| if w.cols.is_multiple_of(format.block_len()) { format } else { WeightFormat::F32 })
            .collect();
        let scaled = |random: &mut Random, n: usize, s: f32| -> Vec<f32> {
            random.values(n).into_iter().map(|v| v * s).collect()
        };
        let matrices = graph
            .weights
            .iter()
            .zip(&formats)
            .map(|(w, f)| {
                quant::encode(*f, &scaled(&mut random, w.rows * w.cols, 1.0 / (w.cols as f32).sqrt()))
            })
            .collect();
        let vectors = graph.vectors.iter().map(|v| scaled(&mut random, v.len(), 1.0)).collect();
        Self { graph, formats, matrices, vectors }
    }

    /// The same with the first matrix, the embedding, scaled.
    pub fn scaled(graph: Graph, format: WeightFormat, seed: u64, scale: f32) -> Self {
        let mut rig = Self::new(graph, format, seed);
        rig.store(0, rig.formats[0], |_, v| v * scale);
        rig
    }

    /// Stores matrix `index` in another format, with `change(place, value)` of its values.
    pub fn store(&mut self, index: usize, format: WeightFormat, change: impl Fn(usize, f32) -> f32) {
        let mut values = vec![0.0; self.graph.weights[index].rows * self.graph.weights[index].cols];
        quant::decode(self.formats[index], &self.matrices[index], &mut values);
        values.iter_mut().enumerate().for_each(|(i, v)| *v = change(i, *v));
        self.matrices[index] = quant::encode(format, &values);
        self.formats[index] = format;
    }

    /// Gives vector `index` other values.
    pub fn set_vector(&mut self, index: usize, values: Vec<f32>) {
        assert_eq!(values.len(), self.vectors[index].len());
        self.vectors[index] = values;
    }

    pub fn layouts(&self, caps: &Caps) -> Vec<WeightLayout> {
        let layout = |(spec, format): (&WeightSpec, &WeightFormat)| {
            WeightLayout::new(spec, &vec![*format; spec.parts.len()], caps).unwrap()
        };
        self.graph.weights.iter().zip(&self.formats).map(layout).collect()
    }

    /// Runs `plan` on the device for every batch in turn; the last batch's logits.
    pub fn run(
        &self,
        gpu: &Context,
        caps: &Caps,
        plan: &Plan,
        batches: &[Batch],
        context: usize,
    ) -> Vec<f32> {
        let pieces: Vec<_> = batches.iter().map(|b| (plan, b.clone())).collect();
        self.run_plans(gpu, caps, &pieces, context)
    }

    /// Runs batches in turn, each by its plan, over one cache; the last batch's logits.
    pub fn run_plans(
        &self,
        gpu: &Context,
        caps: &Caps,
        pieces: &[(&Plan, Batch)],
        context: usize,
    ) -> Vec<f32> {
        let tokens = pieces.iter().flat_map(|(_, b)| &b.tokens);
        let sequences = tokens.map(|t| t.sequence as usize + 1).max().unwrap_or(1);
        let pages = context.div_ceil(PAGE);
        // Pages of the sequences alternate, from the last one down.
        let tables: Vec<Vec<u32>> = (0..sequences)
            .map(|s| (0..pages).map(|p| (sequences * pages - 1 - (p * sequences + s)) as u32).collect())
            .collect();
        let held = self.hold(gpu, caps, pieces[0].0.options.kv, sequences, context);
        let mut bound: Vec<(&Plan, Executable)> = Vec::new();
        let mut logits = Vec::new();
        for (plan, batch) in pieces {
            let place = bound.iter().position(|(p, _)| std::ptr::eq(*p, *plan)).unwrap_or_else(|| {
                bound.push((*plan, held.bind(gpu, plan)));
                bound.len() - 1
            });
            let run = &mut bound[place].1;
            run.run(batch, StepTables(&tables)).unwrap();
            pollster::block_on(run.read_logits(batch.outputs.len(), &mut logits)).unwrap();
        }
        logits
    }

    /// Binds `plan` to this rig's weights and an empty cache; activations are poisoned.
    pub fn bind(
        &self,
        gpu: &Context,
        caps: &Caps,
        plan: &Plan,
        sequences: usize,
        context: usize,
    ) -> Executable {
        self.hold(gpu, caps, plan.options.kv, sequences, context).bind(gpu, plan)
    }

    /// This rig's weights and an empty cache on the device.
    fn hold(&self, gpu: &Context, caps: &Caps, kv: KvFormat, sequences: usize, context: usize) -> Held {
        let matrices: Vec<Vec<Planes>> =
            self.layouts(caps).iter().enumerate().map(|(i, l)| self.upload(gpu, i, l)).collect();
        let vectors: Vec<_> = self
            .vectors
            .iter()
            .map(|v| {
                let mut v = v.clone();
                v.resize(2 * padded(v.len()), 0.0);
                let buffer = gpu.buffer("vector", v.len() as u64 * 4, "").unwrap();
                gpu.write(&buffer, 0, bytemuck::cast_slice(&v));
                buffer
            })
            .collect();
        let tables = |rope: &Rope| {
            let tables = rope.rotations(context).tables(context);
            let buffer = gpu.buffer("rope", tables.len() as u64 * 8, "").unwrap();
            gpu.write(&buffer, 0, bytemuck::cast_slice(&tables));
            buffer
        };
        let ropes = self.graph.ropes.iter().map(tables).collect();
        let pages = context.div_ceil(PAGE);
        let cache = || {
            let layer = |h: &wgllama::graph::Heads| {
                let row = h.kv_heads * kv.head_bytes(wgllama::shape::stored_head_dim(h.head_dim));
                gpu.buffer("cache", (sequences * pages * PAGE * row) as u64, "").unwrap()
            };
            self.graph.caches.iter().map(layer).collect::<Vec<_>>()
        };
        let (keys, values) = (cache(), cache());
        Held { matrices, vectors, ropes, keys, values, sequences, pages }
    }

    fn upload(&self, gpu: &Context, index: usize, layout: &WeightLayout) -> Vec<Planes> {
        let spec = &self.graph.weights[index];
        let bytes = &self.matrices[index];
        let row_bytes = bytes.len() / spec.rows;
        let shard = |shard: &wgllama::plan::Shard| {
            let planes = &shard.planes;
            let (mut quants, mut scales) = (Vec::new(), Vec::new());
            let rows = (0..planes.rows).map(|r| {
                shard.source(spec, r).map_or(&[][..], |(part, row)| {
                    let before: usize = spec.parts[..part].iter().map(|p| p.rows).sum();
                    &bytes[(before + row) * row_bytes..][..row_bytes]
                })
            });
            pack(planes, rows, &mut quants, &mut scales);
            let buffer = gpu.buffer("weights", planes.bytes() as u64, "").unwrap();
            gpu.write(&buffer, 0, &quants);
            if !scales.is_empty() {
                gpu.write(&buffer, planes.scale_at as u64, &scales);
            }
            Planes {
                buffer,
                quant_bytes: planes.quant_bytes as u64,
                scale_at: planes.scale_at as u64,
                scale_bytes: planes.scale_bytes as u64,
            }
        };
        layout.shards.iter().map(shard).collect()
    }
}

/// What plans are bound to.
struct Held {
    matrices: Vec<Vec<Planes>>,
    vectors: Vec<Buffer>,
    ropes: Vec<Buffer>,
    keys: Vec<Buffer>,
    values: Vec<Buffer>,
    sequences: usize,
    pages: usize,
}

impl Held {
    fn bind(&self, gpu: &Context, plan: &Plan) -> Executable {
        let buffers = Buffers {
            weights: &self.matrices,
            vectors: &self.vectors,
            ropes: &self.ropes,
            keys: &self.keys,
            values: &self.values,
            choices: None,
        };
        let run = Executable::bind(gpu, plan.clone(), buffers, self.sequences, self.pages).unwrap();
        run.fill_activations(f32::NAN.to_bits());
        run
    }
}

impl Source for Rig {
    fn weight(&self, graph: &Graph, id: WeightId) -> Result<Vec<f32>> {
        let spec = &graph.weights[id.0];
        let mut values = vec![0.0; spec.rows * spec.cols];
        quant::decode(self.formats[id.0], &self.matrices[id.0], &mut values);
        if !spec.interleaved {
            return Ok(values);
        }
        let (n, rows) = (spec.matrix_parts(), spec.matrix_rows());
        let row = |r: usize| {
            let (first, r) = (r / rows * rows, r % rows);
            let at = (first + r % n * (rows / n) + r / n) * spec.cols;
            values[at..at + spec.cols].to_vec()
        };
        Ok((0..spec.rows).flat_map(row).collect())
    }

    fn vector(&self, _graph: &Graph, id: VectorId) -> Result<Vec<f32>> {
        Ok(self.vectors[id.0].clone())
    }
}
