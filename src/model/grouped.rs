//! Checkpoints of AWQ and GPTQ, whose matrices are three or four tensors each: quants of four bits,
//! packed in words along the inputs or the outputs, and zeros and scales for groups of inputs. Owns
//! their layouts and checks, and turns them into rows of [`WeightFormat::U4`].
//! Sources: the checkpoints' definitions in AutoAWQ ("gemm") and in AutoGPTQ ("gptq", "gptq_v2").

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use safetensors::Dtype;

use crate::dtype::WeightFormat;
use crate::error::{Error, Result};
use crate::files::{JsonFile, SafetensorsFolder};
use crate::host::{HostTensor, TensorSource};
use crate::quant::u4;
use crate::shape::GROUP;
use crate::{native, quant};

/// How the words of a checkpoint are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// A word of `qweight` holds eight inputs of an output; zeros are stored less `zero`.
    Gptq { zero: u8 },
    /// A word of `qweight` holds an input of eight outputs.
    Awq,
}

/// Outputs of a word in AWQ, from the lowest bits on.
const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// What a packed matrix's name becomes for the order of its inputs, where that has one. The places
/// are floats, which hold every one: there are no more than 2^24 inputs.
pub const ORDER: &str = "_order";

/// Rows that are unpacked together, so that what shares a cache line is read at once.
const ROWS: usize = 32;

/// The tensors of a folder, with packed matrices under the names of what they stand for.
pub struct GroupedFolder {
    files: SafetensorsFolder,
    /// `...weight` of each matrix that is packed.
    packed: BTreeMap<String, Packed>,
    /// Tensors that belong to those.
    parts: HashSet<String>,
}

/// A packed matrix.
struct Packed {
    /// Name without its last part.
    stem: String,
    layout: Layout,
    /// Outputs.
    rows: usize,
    /// Inputs.
    cols: usize,
    /// Inputs with one scale.
    group: usize,
    /// The inputs in the order of their groups, where they are not so already.
    order: Option<Vec<u32>>,
}

impl GroupedFolder {
    /// Finds the packed matrices of `files`, as `config`, a config.json, describes them.
    pub fn open(files: SafetensorsFolder, config: &JsonFile) -> Result<Self> {
        let stems: Vec<String> = files
            .stored_names()
            .filter_map(|name| name.strip_suffix(".qweight").map(str::to_string))
            .collect();
        let mut folder = Self { files, packed: BTreeMap::new(), parts: HashSet::new() };
        if stems.is_empty() {
            return Ok(folder);
        }
        let (layout, group) = description(config)?;
        for stem in stems {
            let packed = folder.check(&stem, layout, group)?;
            folder
                .parts
                .extend(["qweight", "qzeros", "scales", "g_idx"].map(|part| format!("{stem}.{part}")));
            folder.packed.insert(format!("{stem}.weight"), packed);
        }
        Ok(folder)
    }

    /// Why a tensor that is there can't be used; see [`SafetensorsFolder::format_problem`].
    pub fn format_problem(&self, name: &str) -> Option<Error> {
        self.files.format_problem(name)
    }

    fn path(&self) -> &Path {
        self.files.path()
    }

    fn error(&self, message: String) -> Error {
        Error::Tensors { path: self.path().to_path_buf(), problems: vec![message] }
    }

    /// Shape and words of a tensor of 32-bit integers.
    fn words(&self, name: &str) -> Result<(&[usize], &[u8])> {
        match self.files.stored(name) {
            Some((Dtype::I32, shape, bytes)) => Ok((shape, bytes)),
            Some((dtype, ..)) => Err(self.error(format!("{name}: expected I32, found {dtype}"))),
            None => Err(self.error(format!("{name}: missing"))),
        }
    }

    /// The sizes of a matrix, checked against those of all its tensors.
    fn check(&self, stem: &str, layout: Layout, group: Option<usize>) -> Result<Packed> {
        let name = |part: &str| format!("{stem}.{part}");
        let (shape, _) = self.words(&name("qweight"))?;
        let &[a, b] = shape else {
            return Err(self.error(format!("{}: expected two dimensions, found {shape:?}", name("qweight"))));
        };
        if shape.contains(&0) {
            return Err(self.error(format!("{}: expected weights, found shape {shape:?}", name("qweight"))));
        }
        let (rows, cols) = match layout {
            Layout::Gptq { .. } => (b, a * 8),
            Layout::Awq => (b * 8, a),
        };
        let group = group.unwrap_or(cols);
        if group == 0 || !group.is_multiple_of(GROUP) || !cols.is_multiple_of(group) {
            let message = format!(
                "{stem}: expected groups of a multiple of {GROUP} that divides {cols} inputs, found {group}"
            );
            return Err(self.error(message));
        }
        if !rows.is_multiple_of(8) {
            return Err(self.error(format!("{stem}: expected a multiple of 8 outputs, found {rows}")));
        }
        let groups = cols / group;
        let scales = self.files.tensor(&name("scales"));
        let scales = scales.ok_or_else(|| self.error(format!("{}: missing", name("scales"))))?;
        let (zeros, _) = self.words(&name("qzeros"))?;
        for (part, found, expected) in
            [("scales", scales.shape.as_slice(), [groups, rows]), ("qzeros", zeros, [groups, rows / 8])]
        {
            if found != expected {
                let name = name(part);
                return Err(self.error(format!("{name}: expected shape {expected:?}, found {found:?}")));
            }
        }
        let mut values = vec![0.0; if scales.format == WeightFormat::F16 { 0 } else { scales.len() }];
        quant::decode(scales.format, &scales.bytes, &mut values);
        if let Some(value) = values.iter().find(|v| half::f16::from_f32(**v).to_f32() != **v) {
            let message =
                format!("{}: expected scales that f16 holds exactly, found {value}", name("scales"));
            return Err(self.error(message));
        }
        let order = self.order_of(&name("g_idx"), cols, group)?;
        Ok(Packed { stem: stem.to_string(), layout, rows, cols, group, order })
    }

    /// The inputs in the order of their groups, where a tensor lists the group of each and they are not
    /// in that order.
    fn order_of(&self, name: &str, cols: usize, group: usize) -> Result<Option<Vec<u32>>> {
        if self.files.stored(name).is_none() {
            return Ok(None);
        }
        let (shape, bytes) = self.words(name)?;
        if shape != [cols] {
            return Err(self.error(format!("{name}: expected shape [{cols}], found {shape:?}")));
        }
        let groups: Vec<u32> = bytes.chunks_exact(4).map(|b| word(b, 0)).collect();
        let mut order: Vec<u32> = (0u32..).take(cols).collect();
        order.sort_by_key(|input| groups[*input as usize]);
        let group_of = |place: usize| groups[order[place] as usize] as usize;
        if let Some(place) = (0..cols).find(|place| group_of(*place) != place / group) {
            let message = format!(
                "{name}: expected {group} inputs in each of {} groups, found others in group {}",
                cols / group,
                group_of(place).min(place / group)
            );
            return Err(self.error(message));
        }
        let in_order = order.iter().zip(0u32..).all(|(input, place)| *input == place);
        Ok((!in_order).then_some(order))
    }

    /// The inputs in the order in which the columns of a matrix come, where that is another.
    pub fn input_order(&self, name: &str) -> Option<&[u32]> {
        self.packed.get(name)?.order.as_deref()
    }

    /// The matrix whose inputs a tensor puts in order.
    fn ordered(&self, name: &str) -> Option<&[u32]> {
        self.input_order(name.strip_suffix(ORDER)?)
    }

    /// All rows in [`WeightFormat::U4`].
    fn unpack(&self, packed: &Packed) -> Option<Vec<u8>> {
        let name = |part: &str| format!("{}.{part}", packed.stem);
        let (_, quants) = self.words(&name("qweight")).ok()?;
        let (_, zeros) = self.words(&name("qzeros")).ok()?;
        let stored = self.files.tensor(&name("scales"))?;
        let mut scales = vec![0.0; stored.len()];
        quant::decode(stored.format, &stored.bytes, &mut scales);

        let Packed { layout, rows, cols, group, .. } = *packed;
        let order = packed.order.as_deref();
        let zero = |g: usize, row: usize| {
            let place = |word: usize| word + g * rows / 8;
            match layout {
                Layout::Gptq { zero } => nibble(word(zeros, place(row / 8)), row % 8) + zero,
                Layout::Awq => nibble(word(zeros, place(row / 8)), awq_place(row)),
            }
        };
        let unpack_rows = |start: &usize| {
            let mut out = Vec::new();
            for row in *start..(*start + ROWS).min(rows) {
                for first in (0..cols).step_by(GROUP) {
                    let g = first / group;
                    let quant = |j: usize| {
                        let k = order.map_or(first + j, |order| order[first + j] as usize);
                        match layout {
                            Layout::Gptq { .. } => nibble(word(quants, k / 8 * rows + row), k % 8),
                            Layout::Awq => nibble(word(quants, (k * rows + row) / 8), awq_place(row)),
                        }
                    };
                    let d = half::f16::from_f32(scales[g * rows + row]);
                    out.extend(u4::block(d, zero(g, row), quant));
                }
            }
            out
        };
        let starts: Vec<usize> = (0..rows).step_by(ROWS).collect();
        let parts = native::parallel(&starts, unpack_rows);
        Some(parts.into_iter().flat_map(|(_, bytes)| bytes).collect())
    }
}

impl TensorSource for GroupedFolder {
    fn names(&self) -> Vec<&str> {
        let plain = self.files.names().into_iter().filter(|name| !self.parts.contains(*name));
        plain.chain(self.packed.keys().map(String::as_str)).collect()
    }

    fn describe(&self, name: &str) -> Option<(WeightFormat, Vec<usize>)> {
        match (self.packed.get(name), self.ordered(name)) {
            (Some(packed), _) => Some((WeightFormat::U4, vec![packed.rows, packed.cols])),
            (_, Some(order)) => Some((WeightFormat::F32, vec![order.len()])),
            _ => self.files.describe(name),
        }
    }

    fn tensor(&self, name: &str) -> Option<HostTensor<'_>> {
        if let Some(order) = self.ordered(name) {
            let bytes: Vec<u8> = order.iter().flat_map(|input| (*input as f32).to_le_bytes()).collect();
            return Some(HostTensor {
                format: WeightFormat::F32,
                shape: vec![order.len()],
                bytes: bytes.into(),
            });
        }
        let Some(packed) = self.packed.get(name) else { return self.files.tensor(name) };
        let bytes = self.unpack(packed)?.into();
        Some(HostTensor { format: WeightFormat::U4, shape: vec![packed.rows, packed.cols], bytes })
    }
}

/// Word `at` of a tensor of 32-bit integers.
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at * 4..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

fn nibble(word: u32, place: usize) -> u8 {
    (word >> (4 * place) & 15) as u8
}

/// Where the word of eight outputs has that of row `row`.
fn awq_place(row: usize) -> usize {
    AWQ_ORDER.iter().position(|output| *output == row % 8).unwrap_or(0)
}

/// The layout and the size of groups; one group for all inputs without a size.
fn description(config: &JsonFile) -> Result<(Layout, Option<usize>)> {
    let key = "quantization_config";
    let Some(about) = config.object(key)? else {
        return Err(config.error(key, "expected an object, since there are packed weights; found nothing"));
    };
    let only = |key: &str, expected: &[&str]| -> Result<Option<String>> {
        match about.opt_str(key)? {
            Some(found) if !expected.contains(&found.to_lowercase().as_str()) => {
                Err(about.error(key, format!("expected {}, found '{found}'", expected.join(" or "))))
            }
            found => Ok(found.map(str::to_lowercase)),
        }
    };
    let bits = about.usize("bits")?;
    if bits != 4 {
        return Err(about.error("bits", format!("expected 4, found {bits}")));
    }
    let layout = match only("quant_method", &["awq", "gptq"])?.as_deref() {
        Some("awq") => {
            only("version", &["gemm"])?;
            Layout::Awq
        }
        _ => match only("checkpoint_format", &["gptq", "gptq_v2"])?.as_deref() {
            Some("gptq_v2") => Layout::Gptq { zero: 0 },
            _ => Layout::Gptq { zero: 1 },
        },
    };
    // A size of -1 stands for all inputs.
    let group = match about.opt_f64("group_size")? {
        Some(size) if size < 0.0 => None,
        _ => Some(about.usize("group_size")?),
    };
    Ok((layout, group))
}
