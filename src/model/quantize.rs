//! Writing GGUF: another file in other formats, or a Hugging Face folder.

use std::collections::HashSet;
use std::io::Write;
use std::path::Path;

use crate::dtype::WeightFormat;
use crate::error::{Error, Result};
use crate::files::{Gguf, GgufWriter};
use crate::graph::{Part, WeightSpec};
use crate::host::{HostTensor, TensorSource};
use crate::model::grouped::ORDER;
use crate::model::weights::convert;
use crate::model::{ModelFiles, architecture, names};
use crate::tokenizer::Tokenizer;
use crate::{native, quant};

/// Which formats a file's matrices are to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quantize {
    /// Of most matrices; each stays as it is if none is named.
    pub format: Option<WeightFormat>,
    /// Of the embedding; `format` if none is named.
    pub embedding: Option<WeightFormat>,
    /// Of the matrix of the logits, or of the embedding where that serves for both; by default
    /// Q6_K for smaller formats, whose errors there would meet every logit, and else `format`.
    pub output: Option<WeightFormat>,
    /// Whether tensors that are quantised already may be quantised once more.
    pub requantize: bool,
}

const EMBEDDING: &str = "token_embd.weight";
const OUTPUT: &str = "output.weight";

/// The format of vectors: the only one that other engines take.
const VECTORS: WeightFormat = WeightFormat::F32;

/// About how many bytes are converted at a time.
const CHUNK: usize = 4 << 20;

/// llama.cpp's number for files that hold mostly `format`.
fn file_type(format: WeightFormat) -> u32 {
    match format {
        // The writer refuses the others, which GGML does not have.
        WeightFormat::F32 | WeightFormat::F8_E4M3 | WeightFormat::F8_E5M2 | WeightFormat::U4 => 0,
        WeightFormat::F16 => 1,
        WeightFormat::Q4_0 => 2,
        WeightFormat::Q4_1 => 3,
        WeightFormat::Q8_0 => 7,
        WeightFormat::Q5_0 => 8,
        WeightFormat::Q5_1 => 9,
        WeightFormat::Q2_K => 10,
        WeightFormat::Q3_K => 11,
        WeightFormat::Q4_K => 14,
        WeightFormat::Q5_K => 16,
        WeightFormat::Q6_K => 18,
        WeightFormat::IQ4_NL => 25,
        WeightFormat::IQ4_XS => 30,
        WeightFormat::BF16 => 32,
        WeightFormat::MXFP4 => 38,
    }
}

impl Quantize {
    /// The format of a tensor in the new file.
    fn wanted(&self, tensor: &Stored<'_>, tied: bool) -> Result<WeightFormat> {
        let name = tensor.name.as_str();
        let &[.., rows, cols] = tensor.shape.as_slice() else { return Ok(VECTORS) };
        // Norms and biases may be stored as a single row. On a router whole experts depend.
        let router = name.ends_with("ffn_gate_inp.weight");
        if rows < 2 || router || !name.ends_with(".weight") {
            return Ok(tensor.format);
        }
        let most = self.format.unwrap_or(tensor.format);
        let bits = |format: WeightFormat| format.block_bytes() * 256 / format.block_len();
        let small = self.format.is_some_and(|format| bits(format) < bits(WeightFormat::Q6_K));
        let output = self.output.unwrap_or(if small { WeightFormat::Q6_K } else { most });
        let wanted = match name {
            OUTPUT => output,
            EMBEDDING if tied => self.embedding.unwrap_or(output),
            EMBEDDING => self.embedding.unwrap_or(most),
            _ => most,
        };
        let format = quant::fitting(wanted, cols);
        if format != tensor.format && tensor.format.block_len() > 1 && !self.requantize {
            let message = format!(
                "{name} is stored as {}, and quantising it once more loses more than once would: \
                 begin with a file in f32, f16 or bf16, or allow it (--requantize)",
                tensor.format
            );
            return Err(Error::option("quantize", message));
        }
        Ok(format)
    }

    /// Writes `from` with other formats to `out`, which errors call `path`. `progress` hears the
    /// tensors done and all. A file with tensors of whole numbers is refused: they would be lost.
    pub fn write(
        &self,
        from: &Gguf,
        out: &mut impl Write,
        path: &Path,
        progress: impl FnMut(u64, u64),
    ) -> Result<()> {
        if let Some(problem) = from.left_out().find_map(|name| from.format_problem(name)) {
            return Err(problem);
        }
        let stored = |name| {
            let (format, shape) = from.describe(name)?;
            let origin = Origin::Gguf(from, name);
            Some(Stored { name: name.to_string(), format, shape, origin })
        };
        let tensors: Vec<_> = from.names().into_iter().filter_map(stored).collect();
        let mut writer = GgufWriter::default();
        from.keys().filter(|key| !OWN.contains(key)).for_each(|key| writer.copy(from, key));
        self.finish(writer, &tensors, out, path, progress)
    }

    /// Writes the model in a Hugging Face folder, with its tokenizer, likewise. Returns the tensors of
    /// the folder that the model has no place for, and that are not written.
    pub fn convert(
        &self,
        from: &ModelFiles,
        out: &mut impl Write,
        path: &Path,
        progress: impl FnMut(u64, u64),
    ) -> Result<Vec<String>> {
        let config = from.config();
        let mut writer = GgufWriter::default();
        let name = from.path().canonicalize().unwrap_or_default();
        let architecture = architecture(&config.model_type)?;
        let own = config.to_gguf(from.path(), &mut writer)?;
        writer.string("general.name", &name.file_name().unwrap_or_default().to_string_lossy());
        writer.vocab(&Tokenizer::vocab(from.path(), config.vocab_size)?);

        let graph = from.graph();
        let gains = graph.vectors.iter().flat_map(|v| &v.parts);
        // Columns are put back in the order of the inputs, for which GGUF has no other.
        let gains = gains.filter(|part| !part.tensor.ends_with(ORDER)).map(|part| vec![part]);
        // A tensor of several parts has its rows as they are.
        let stacks: Vec<Vec<&Part>> = graph.weights.iter().flat_map(stacks).chain(gains).collect();
        let stacks: Vec<_> = stacks.into_iter().filter(|stack| stack[0].first() == 0).collect();
        // GGUF has whole factors where a folder has them less one.
        let shifted = graph.vectors.iter().filter(|v| v.shift != 0.0).flat_map(|v| {
            v.parts.iter().map(|part| {
                let tensor = from.tensor(&part.tensor)?;
                let mut stored = vec![0.0; tensor.len()];
                quant::decode(tensor.format, &tensor.bytes, &mut stored);
                let values = (0..part.rows).map(|row| stored[from.gguf_row(part, row)] + v.shift).collect();
                Ok((names::gguf(architecture.modules, &part.tensor), values))
            })
        });
        let own = own.into_iter().map(|(name, values)| Ok((name.to_string(), values)));
        let vectors: Vec<(String, Vec<f32>)> = shifted.chain(own).collect::<Result<_>>()?;
        let written: HashSet<&str> = vectors.iter().map(|(name, _)| name.as_str()).collect();
        let folder = stacks.iter().map(|stack| {
            let (format, shape) = from.describe(&stack[0].tensor)?;
            let shape = if stack.len() > 1 { [vec![stack.len()], shape].concat() } else { shape };
            let name = names::gguf(architecture.modules, &of_all(&stack[0].tensor, stack.len()));
            Ok(Stored { name, format, shape, origin: Origin::Folder(from, stack) })
        });
        let vectors = vectors.iter().map(|(name, values)| {
            let (name, shape) = (name.clone(), vec![values.len()]);
            Ok(Stored { name, format: VECTORS, shape, origin: Origin::Values(from, values) })
        });
        let folder = folder.filter(|t| !matches!(t, Ok(t) if written.contains(t.name.as_str())));
        let tensors = folder.chain(vectors).collect::<Result<Vec<_>>>()?;
        let left = from.left_over();
        self.finish(writer, &tensors, out, path, progress)?;
        Ok(left)
    }

    fn finish<W: Write>(
        &self,
        mut writer: GgufWriter,
        tensors: &[Stored<'_>],
        out: &mut W,
        path: &Path,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<()> {
        let tied = !tensors.iter().any(|t| t.name == OUTPUT);
        let formats = tensors.iter().map(|t| self.wanted(t, tied)).collect::<Result<Vec<_>>>()?;
        let size = |t: &Stored<'_>| t.shape.iter().product::<usize>();
        let most = || tensors.iter().zip(&formats).max_by_key(|(t, _)| size(t)).map(|(_, f)| *f);
        writer.u32(OWN[0], file_type(self.format.or_else(most).unwrap_or(WeightFormat::F32)));
        writer.u32(OWN[1], 2);
        for (stored, format) in tensors.iter().zip(&formats) {
            writer.tensor(&stored.name, &stored.shape, *format);
        }
        let all = tensors.len() as u64;
        writer.write(path, out, |i, out| {
            tensors[i].write(formats[i], out, path)?;
            progress(i as u64 + 1, all);
            Ok(())
        })
    }
}

/// The tensors of a matrix, those of experts that GGUF has as one together.
fn stacks(spec: &WeightSpec) -> Vec<Vec<&Part>> {
    let n = spec.matrix_parts();
    match spec.matrices {
        1 => spec.parts.iter().map(|part| vec![part]).collect(),
        _ => (0..n).map(|kind| spec.parts.iter().skip(kind).step_by(n).collect()).collect(),
    }
}

/// The name of a tensor of all experts, from that of the first one's.
fn of_all(name: &str, experts: usize) -> String {
    if experts > 1 { name.replacen(".experts.0.", ".experts.", 1) } else { name.to_string() }
}

/// Keys of what a new file says of itself.
const OWN: [&str; 3] = ["general.file_type", "general.quantization_version", "general.alignment"];

/// A tensor to be written.
struct Stored<'a> {
    /// Its name in the new file.
    name: String,
    /// As it is stored now.
    format: WeightFormat,
    shape: Vec<usize>,
    origin: Origin<'a>,
}

/// Where a tensor's bytes come from.
#[derive(Clone, Copy)]
enum Origin<'a> {
    /// As they are.
    Gguf(&'a Gguf, &'a str),
    /// With rows in the order of GGUF, and the matrices of experts one after the other.
    Folder(&'a ModelFiles, &'a [&'a Part]),
    /// A vector that is no tensor of the folder.
    Values(&'a ModelFiles, &'a [f32]),
}

impl Origin<'_> {
    fn path(&self) -> &Path {
        match self {
            Self::Gguf(gguf, _) => gguf.path(),
            Self::Folder(files, _) | Self::Values(files, _) => files.path(),
        }
    }

    /// Parts that follow one another.
    fn parts(&self) -> usize {
        if let Self::Folder(_, parts) = self { parts.len() } else { 1 }
    }

    fn tensor(&self, part: usize) -> Result<HostTensor<'_>> {
        match self {
            Self::Gguf(gguf, name) => gguf.tensor(name).ok_or_else(|| Error::Tensors {
                path: gguf.path().to_path_buf(),
                problems: vec![format!("{name}: missing")],
            }),
            Self::Folder(files, parts) => files.tensor(&parts[part].tensor),
            Self::Values(_, values) => Ok(HostTensor {
                format: VECTORS,
                shape: vec![values.len()],
                bytes: bytemuck::cast_slice(values).into(),
            }),
        }
    }

    /// Where the values of a row belong, if not where they are.
    fn input_order(&self, part: usize) -> Option<&[u32]> {
        match self {
            Self::Gguf(..) | Self::Values(..) => None,
            Self::Folder(files, parts) => files.input_order(&parts[part].tensor),
        }
    }

    /// The stored row that becomes row `row`.
    fn row(&self, part: usize, row: usize) -> usize {
        match self {
            Self::Gguf(..) | Self::Values(..) => row,
            Self::Folder(files, parts) => files.gguf_row(parts[part], row),
        }
    }
}

impl Stored<'_> {
    fn write(&self, format: WeightFormat, out: &mut impl Write, path: &Path) -> Result<()> {
        (0..self.origin.parts()).try_for_each(|part| self.write_part(part, format, out, path))
    }

    fn write_part(&self, part: usize, format: WeightFormat, out: &mut impl Write, path: &Path) -> Result<()> {
        let failed = |e| Error::io(path, e);
        let tensor = self.origin.tensor(part)?;
        if format == tensor.format && !matches!(self.origin, Origin::Folder(..)) {
            return out.write_all(&tensor.bytes).map_err(failed);
        }
        // The order of a vector's values is one of rows, too.
        let rows = match (&self.origin, tensor.shape.as_slice()) {
            (Origin::Folder(..), [values]) => *values,
            (_, [.., values]) => tensor.len() / (*values).max(1),
            (_, []) => 1,
        };
        let row_bytes = tensor.bytes.len() / rows.max(1);
        let row = |row| &tensor.bytes[self.origin.row(part, row) * row_bytes..][..row_bytes];
        let rows: Vec<&[u8]> = (0..rows).map(row).collect();
        for rows in rows.chunks((CHUNK / row_bytes.max(1)).max(1)) {
            let convert = |row: &&[u8]| {
                convert(&tensor, (self.origin.path(), &self.name), row, self.origin.input_order(part), format)
            };
            for (_, row) in native::parallel(rows, convert) {
                out.write_all(&row?).map_err(failed)?;
            }
        }
        Ok(())
    }
}
