//! The formats in which weights and cached keys and values are stored.
//! Encoding and decoding is `quant`'s; the layout on the GPU is `kernels::pack`'.

use std::fmt;

/// How the weights of one tensor are stored, in files and on the GPU alike.
///
/// Block formats follow GGML's definitions (`ggml-common.h`): a block holds
/// [`block_len`](Self::block_len) consecutive weights of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(non_camel_case_types, reason = "as the formats are called everywhere")]
pub enum WeightFormat {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// bfloat16: the upper half of an f32.
    BF16,
    /// Eight bits: sign, four of exponent, three of mantissa, no infinity (OCP E4M3).
    F8_E4M3,
    /// Eight bits: the upper half of an f16 (OCP E5M2).
    F8_E5M2,
    /// 32 weights: f16 scale d, 32 signed bytes q; w = d q.
    Q8_0,
    /// 32 weights: f16 scale d, 16 bytes of nibbles q; w = d (q - 8).
    Q4_0,
    /// 32 weights: f16 scale d, f16 minimum m, 16 bytes of nibbles q; w = d q + m.
    Q4_1,
    /// 32 weights: as Q4_0 with a fifth bit; w = d (q - 16).
    Q5_0,
    /// 32 weights: as Q4_1 with a fifth bit; w = d q + m.
    Q5_1,
    /// 256 weights, a 4-bit scale and minimum for each 16; w = d s q - e m with q of two bits.
    Q2_K,
    /// 256 weights, a 6-bit scale for each 16; w = d s (q - 4) with q of three bits.
    Q3_K,
    /// 256 weights, a 6-bit scale and minimum for each 32; w = d s q - e m with q of four bits.
    Q4_K,
    /// As Q4_K, with q of five bits.
    Q5_K,
    /// 256 weights, an 8-bit scale for each 16; w = d s (q - 32) with q of six bits.
    Q6_K,
    /// 32 weights: f16 scale d, nibbles that stand for sixteen unequal steps.
    IQ4_NL,
    /// 256 weights: as IQ4_NL, with a 6-bit scale for each 32.
    IQ4_XS,
    /// 32 weights: a power of two, nibbles that are floats of four bits.
    MXFP4,
    /// 32 weights: f16 scale d, f16 zero z (a whole number), 16 bytes of nibbles q; w = d (q - z).
    /// What AWQ and GPTQ checkpoints become; GGUF has no such format.
    U4,
}

impl WeightFormat {
    /// All formats, for enumeration in tests and tables.
    pub const ALL: [Self; 19] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::F8_E4M3,
        Self::F8_E5M2,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::IQ4_NL,
        Self::IQ4_XS,
        Self::MXFP4,
        Self::U4,
    ];

    /// Weights in one block; a row is a whole number of blocks.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 | Self::F8_E4M3 | Self::F8_E5M2 => 1,
            Self::Q8_0
            | Self::Q4_0
            | Self::Q4_1
            | Self::Q5_0
            | Self::Q5_1
            | Self::IQ4_NL
            | Self::MXFP4
            | Self::U4 => 32,
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K | Self::IQ4_XS => 256,
        }
    }

    /// Bytes of one block in a file.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::F8_E4M3 | Self::F8_E5M2 => 1,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q2_K => 84,
            Self::Q3_K => 110,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
            Self::IQ4_NL => 18,
            Self::IQ4_XS => 136,
            Self::MXFP4 => 17,
            Self::U4 => 20,
        }
    }

    /// Lower-case name, as in variants and plans.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::F8_E4M3 => "f8_e4m3",
            Self::F8_E5M2 => "f8_e5m2",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q2_K => "q2_k",
            Self::Q3_K => "q3_k",
            Self::Q4_K => "q4_k",
            Self::Q5_K => "q5_k",
            Self::Q6_K => "q6_k",
            Self::IQ4_NL => "iq4_nl",
            Self::IQ4_XS => "iq4_xs",
            Self::MXFP4 => "mxfp4",
            Self::U4 => "u4",
        }
    }

    /// The names of all formats, for messages.
    pub fn supported() -> String {
        Self::ALL.map(|f| f.name().to_uppercase()).join(", ")
    }
}

impl std::str::FromStr for WeightFormat {
    type Err = crate::Error;
    fn from_str(s: &str) -> crate::Result<Self> {
        let message = || format!("expected one of {}, found '{s}'", Self::supported().to_lowercase());
        Self::ALL.into_iter().find(|f| f.name() == s).ok_or_else(|| crate::Error::option("format", message()))
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How activations meet weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Activations {
    /// As they are.
    F32,
    /// Both rounded to halves where an adapter's matrix units multiply them, which is for prompts
    /// and for eight sequences or more; as they are elsewhere. The default.
    #[default]
    F16,
    /// Of a few tokens rounded to signed bytes, with a scale for each 32 of them, where the kernel
    /// for the adapter and the format of the weights can: fewer instructions on GPUs that multiply
    /// four bytes at a time, and an error of about a half in the logits (docs/NUMERICS.md). Of
    /// many as with `F16`.
    Int8,
}

impl Activations {
    /// All ways.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Int8];

    /// Lower-case name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }
}

impl std::str::FromStr for Activations {
    type Err = crate::Error;
    fn from_str(s: &str) -> crate::Result<Self> {
        Self::ALL.into_iter().find(|f| f.name() == s).ok_or_else(|| {
            crate::Error::option("activations", format!("expected f32, f16 or int8, found '{s}'"))
        })
    }
}

/// How cached keys and values are stored. Block formats hold 32 neighbouring values of a head as
/// the weight formats of the same name do, with the scales apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KvFormat {
    /// 4 bytes a value: exact.
    F32,
    /// 2 bytes a value: the default.
    #[default]
    F16,
    /// 8.5 bits a value: half the memory of F16 at a small cost (docs/NUMERICS.md).
    Q8_0,
    /// 4.5 bits a value: a quarter of the memory, at a cost that shows (docs/NUMERICS.md).
    Q4_0,
}

impl KvFormat {
    /// All formats.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Q8_0, Self::Q4_0];

    /// Bytes of a head of `stored` values (whole groups of eight).
    pub const fn head_bytes(self, stored: usize) -> usize {
        // One word holds the scales of two blocks.
        let scales = stored.div_ceil(64) * 4;
        match self {
            Self::F32 => stored * 4,
            Self::F16 => stored * 2,
            Self::Q8_0 => stored + scales,
            Self::Q4_0 => stored / 2 + scales,
        }
    }

    /// Pairs of neighbouring values that are packed at once.
    pub const fn packed_pairs(self) -> usize {
        match self {
            Self::F32 | Self::F16 => 1,
            Self::Q8_0 | Self::Q4_0 => 32,
        }
    }

    /// The weight format whose rounding this format has.
    pub const fn rounding(self) -> WeightFormat {
        match self {
            Self::F32 => WeightFormat::F32,
            Self::F16 => WeightFormat::F16,
            Self::Q8_0 => WeightFormat::Q8_0,
            Self::Q4_0 => WeightFormat::Q4_0,
        }
    }

    /// Lower-case name.
    pub const fn name(self) -> &'static str {
        self.rounding().name()
    }
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for KvFormat {
    type Err = crate::Error;
    fn from_str(s: &str) -> crate::Result<Self> {
        let message = || format!("expected one of {}, found '{s}'", Self::ALL.map(Self::name).join(", "));
        Self::ALL.into_iter().find(|f| f.name() == s).ok_or_else(|| crate::Error::option("kv", message()))
    }
}
