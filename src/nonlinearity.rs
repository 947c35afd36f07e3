//! The functions that stand between the matrices of a feed-forward part.

/// A function of one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Nonlinearity {
    /// x / (1 + exp(-x)) (Elfwing et al. 2018).
    Silu,
    /// x times the normal distribution's share below x (Hendrycks and Gimpel 2016), which a tanh
    /// stands for.
    GeluTanh,
    /// The same without an approximation.
    Gelu,
}

impl Nonlinearity {
    /// All, for enumeration in tests and tables.
    pub const ALL: [Self; 3] = [Self::Silu, Self::GeluTanh, Self::Gelu];

    /// The one that Hugging Face's configurations call `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "silu" | "swish" => Some(Self::Silu),
            "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Some(Self::GeluTanh),
            "gelu" => Some(Self::Gelu),
            _ => None,
        }
    }

    /// What [`from_name`](Self::from_name) knows, for errors.
    pub const NAMES: &'static str = "silu, gelu, gelu_pytorch_tanh";

    /// Its name in plans.
    pub fn name(self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::GeluTanh => "gelu_tanh",
            Self::Gelu => "gelu",
        }
    }

    /// What a gated part is called that has it (Shazeer 2020).
    pub fn glu(self) -> &'static str {
        match self {
            Self::Silu => "swiglu",
            Self::GeluTanh => "geglu_tanh",
            Self::Gelu => "geglu",
        }
    }
}
