//! Weights on the device: streamed from the memory map, repacked row by row, a few megabytes
//! at a time.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::caps::Caps;
use crate::dtype::WeightFormat;
use crate::error::{Error, Result};
use crate::gpu::{Buffer, Context, Planes};
use crate::graph::{Graph, VectorId, VectorSpec, WeightSpec};
use crate::host::HostTensor;
use crate::kernels::pack::{self, Order, pack};
use crate::model::ModelFiles;
use crate::native;
use crate::plan::{Shard, WeightLayout};
use crate::quant;
use crate::shape::padded;

/// About how many bytes are packed before they are written.
const CHUNK: usize = 4 << 20;

const HELP: &str = "choose a smaller model, a smaller weight format or another device";

/// The weights of a model, shared by all of its sessions.
pub struct Weights {
    /// How each matrix is cut.
    pub layouts: Vec<WeightLayout>,
    /// Its shards.
    pub matrices: Vec<Vec<Planes>>,
    /// The vectors, padded.
    pub vectors: Vec<Buffer>,
}

/// The formats that a matrix's parts have on the device: those that they are stored in, unless they
/// are to be quantised.
fn formats(
    files: &ModelFiles,
    spec: &WeightSpec,
    quantize: Option<WeightFormat>,
) -> Result<Vec<WeightFormat>> {
    let stored = files.formats(spec)?.into_iter();
    // What adapters add is small, and so are routers, of which whole experts depend.
    let kept = spec.parts.iter().any(|p| files.is_added(&p.tensor)) || spec.name.ends_with(".router");
    Ok(match quantize.filter(|_| !kept) {
        None => stored.collect(),
        Some(wanted) => stored
            .map(|stored| if stored.block_len() == 1 { quant::fitting(wanted, spec.cols) } else { stored })
            .collect(),
    })
}

/// The layouts of all matrices of `files` for an adapter.
fn layouts(files: &ModelFiles, quantize: Option<WeightFormat>, caps: &Caps) -> Result<Vec<WeightLayout>> {
    let layout = |spec| WeightLayout::new(spec, &formats(files, spec, quantize)?, caps);
    files.graph().weights.iter().map(layout).collect()
}

/// Refuses a row whose weights would be no numbers.
fn check(format: WeightFormat, files: &ModelFiles, name: &str, row: &[u8]) -> Result<()> {
    match quant::bad_block(format, row) {
        None => Ok(()),
        Some(block) => Err(Error::Tensors {
            path: files.path().to_path_buf(),
            problems: vec![format!(
                "{}: expected finite scales and weights, found others in block {block} of a row of {}; the file is \
                 damaged",
                files.stored_name(name),
                format
            )],
        }),
    }
}

/// A row of a tensor, which errors call by file and name, in another format; its value i belongs at
/// `order[i]`, if there is an order.
pub(super) fn convert(
    tensor: &HostTensor<'_>,
    (path, name): (&Path, &str),
    row: &[u8],
    order: Option<&[u32]>,
    format: WeightFormat,
) -> Result<Vec<u8>> {
    if tensor.format == format && order.is_none() {
        return Ok(row.to_vec());
    }
    let mut values = vec![0.0; row.len() / tensor.format.block_bytes() * tensor.format.block_len()];
    quant::decode(tensor.format, row, &mut values);
    if let Some(value) = values.iter().find(|v| !v.is_finite()) {
        return Err(Error::Tensors {
            path: path.to_path_buf(),
            problems: vec![format!("{name}: expected finite weights to quantise, found {value}")],
        });
    }
    if let Some(order) = order {
        let stored = values.clone();
        order.iter().zip(stored).for_each(|(place, value)| values[*place as usize] = value);
    }
    Ok(quant::encode(format, &values))
}

impl Weights {
    /// Loads everything; `progress` hears the bytes done and the bytes in all.
    pub fn load(
        context: &Context,
        files: &ModelFiles,
        quantize: Option<WeightFormat>,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Self> {
        let layouts = layouts(files, quantize, context.caps())?;
        let total: u64 = layouts.iter().map(|l| l.bytes() as u64).sum();
        let mut loader = Loader { context, files, progress, done: 0, total };
        let mut matrices = Vec::new();
        for (spec, layout) in files.graph().weights.iter().zip(&layouts) {
            let shards =
                layout.shards.iter().map(|shard| loader.shard(spec, shard)).collect::<Result<_>>()?;
            matrices.push(shards);
        }
        let vectors = (0..files.graph().vectors.len())
            .map(|i| loader.vector(VectorId(i)))
            .collect::<Result<Vec<_>>>()?;
        context.uploader().flush()?;
        progress(total, total);
        Ok(Self { layouts, matrices, vectors })
    }

    /// Random weights in `format`, or one that fits their rows, for `graph`, made on the device: for measuring speed without
    /// any file. Matrices repeat a few megabytes of them; norms are one.
    pub fn random(context: &Context, graph: &Graph, format: WeightFormat) -> Result<Self> {
        let layout = |spec: &WeightSpec| {
            let format = quant::fitting(format, spec.cols);
            WeightLayout::new(spec, &vec![format; spec.parts.len()], context.caps())
        };
        let layouts = graph.weights.iter().map(layout).collect::<Result<Vec<_>>>()?;
        let mut made = HashMap::new();
        let mut shard = |name: &str, shard: &Shard| {
            let planes = &shard.planes;
            let (quants, scales) = match made.entry(planes.format) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(patterns(context, planes.format, planes.order)?),
            };
            let buffer = context.buffer(name, planes.bytes() as u64, HELP)?;
            context.repeat(&buffer, 0, planes.quant_bytes as u64, quants);
            context.repeat(&buffer, planes.scale_at as u64, planes.scale_bytes as u64, scales);
            Ok(on_device(planes, buffer))
        };
        let matrices = layouts
            .iter()
            .zip(&graph.weights)
            .map(|(layout, spec)| layout.shards.iter().map(|s| shard(&spec.name, s)).collect())
            .collect::<Result<Vec<_>>>()?;
        let vectors = graph.vectors.iter().map(|v| vector(context, &v.name, vec![1.0; v.len()], lanes(v)));
        let vectors = vectors.collect::<Result<Vec<_>>>()?;
        context.wait()?;
        Ok(Self { layouts, matrices, vectors })
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        let shards: u64 = self.matrices.iter().flatten().map(|p| p.buffer.size()).sum();
        shards + self.vectors.iter().map(Buffer::size).sum::<u64>()
    }
}

struct Loader<'a> {
    context: &'a Context,
    files: &'a ModelFiles,
    progress: &'a dyn Fn(u64, u64),
    done: u64,
    total: u64,
}

impl Loader<'_> {
    fn shard(&mut self, spec: &WeightSpec, shard: &Shard) -> Result<Planes> {
        let planes = &shard.planes;
        let buffer = self.context.buffer(&spec.name, planes.bytes() as u64, HELP)?;
        let mut uploader = self.context.uploader();
        let (quant_row, scale_row) = planes.row_bytes();
        let tensors = spec.parts.iter().map(|p| self.files.tensor(&p.tensor)).collect::<Result<Vec<_>>>()?;
        let rows_at_once = (CHUNK / (quant_row + scale_row)).max(1).next_multiple_of(planes.order.align());
        let (mut quants, mut scales) = (Vec::new(), Vec::new());
        for start in (0..planes.rows).step_by(rows_at_once) {
            quants.clear();
            scales.clear();
            let end = (start + rows_at_once).min(planes.rows);
            let rows = (start..end).map(|row| match shard.source(spec, row) {
                Some((part, r)) => {
                    let len = tensors[part].bytes.len() / spec.parts[part].tensor_rows();
                    let stored = self.files.stored_row(&spec.parts[part], r);
                    (part, &tensors[part].bytes[stored * len..][..len])
                }
                None => (0, &[][..]),
            });
            for (part, row) in rows.clone() {
                check(tensors[part].format, self.files, &spec.parts[part].tensor, row)?;
            }
            if shard.parts.iter().all(|&part| tensors[part].format == planes.format) {
                pack(planes, rows.map(|(_, row)| row), &mut quants, &mut scales);
            } else {
                let rows: Vec<_> = rows.collect();
                let converted = native::parallel(&rows, |&(part, row)| {
                    let name = self.files.stored_name(&spec.parts[part].tensor);
                    convert(&tensors[part], (self.files.path(), &name), row, None, planes.format)
                });
                let rows = converted.into_iter().map(|(_, row)| row).collect::<Result<Vec<_>>>()?;
                pack(planes, rows.iter().map(Vec::as_slice), &mut quants, &mut scales);
            }
            uploader.write(&buffer, (start * quant_row) as u64, &quants)?;
            if !scales.is_empty() {
                uploader.write(&buffer, (planes.scale_at + start * scale_row) as u64, &scales)?;
            }
            self.done += (quants.len() + scales.len()) as u64;
            (self.progress)(self.done.min(self.total), self.total);
        }
        uploader.flush()?;
        Ok(on_device(planes, buffer))
    }

    fn vector(&self, id: VectorId) -> Result<Buffer> {
        let spec = &self.files.graph().vectors[id.0];
        vector(self.context, &spec.name, self.files.vector_values(id)?, lanes(spec))
    }
}

fn on_device(planes: &pack::Planes, buffer: Buffer) -> Planes {
    Planes {
        buffer,
        quant_bytes: planes.quant_bytes as u64,
        scale_at: planes.scale_at as u64,
        scale_bytes: planes.scale_bytes as u64,
    }
}

/// Parts of a vector that alternate.
fn lanes(spec: &VectorSpec) -> usize {
    if spec.interleaved { spec.parts.len() } else { 1 }
}

/// A vector of `lanes` alternating parts on the device, padded as its matrix is: see
/// [`WeightLayout`].
fn vector(context: &Context, name: &str, mut values: Vec<f32>, lanes: usize) -> Result<Buffer> {
    values.resize(lanes * padded(values.len() / lanes), 0.0);
    let buffer = context.buffer(name, values.len() as u64 * 4, HELP)?;
    context.write(&buffer, 0, bytemuck::cast_slice(&values));
    Ok(buffer)
}

/// Random quants and scales that belong together, in buffers of their own.
fn patterns(context: &Context, format: WeightFormat, order: Order) -> Result<(Buffer, Buffer)> {
    const VALUES: usize = 1 << 20;
    let mut random = ChaCha8Rng::seed_from_u64(0);
    // Of the size that trained weights have.
    let values: Vec<f32> =
        (0..VALUES).map(|_| (random.next_u32() as f32 / u32::MAX as f32 - 0.5) * 0.06).collect();
    let (mut quants, mut scales) = (Vec::new(), Vec::new());
    let encoded = quant::encode(format, &values);
    let planes = pack::Planes::new(format, order, order.align(), VALUES / order.align());
    pack(&planes, encoded.chunks_exact(encoded.len() / planes.rows), &mut quants, &mut scales);
    scales.resize(scales.len().max(16), 0);
    let upload = |bytes: &[u8]| {
        let buffer = context.buffer("random weights", bytes.len() as u64, HELP)?;
        context.write(&buffer, 0, bytes);
        Ok(buffer)
    };
    Ok((upload(&quants)?, upload(&scales)?))
}
