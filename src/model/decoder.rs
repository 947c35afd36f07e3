//! The graph of all families: LLaMA's (Touvron et al. 2023a), which is pre-normalised attention with
//! rotary positions and a gated feed-forward part, with whatever a configuration has otherwise.

use crate::error::Result;
use crate::graph::{
    Graph, Heads, NodeId, Part, RopeId, RowOrder, Scores, Spans, VectorId, VectorSpec, WeightId, WeightSpec,
};
use crate::model::{Config, NormKind, Norms};
use crate::shape::Rows;

/// Builds the graph; weights carry Hugging Face's tensor names.
pub fn graph(config: &Config) -> Result<Graph> {
    let mut build = Builder { config, graph: Graph::new(config.rope.clone()), sliding_rope: RopeId(0) };
    if let Some(rope) = &config.sliding_rope {
        build.sliding_rope = build.graph.rope(rope.clone());
    }
    let table = build.matrix("embed", config.hidden_size, "model.embed_tokens", config.vocab_size)?;
    let mut x = build.graph.embed_scaled("embed", table, config.embedding_scale);
    for layer in 0..config.num_hidden_layers {
        x = build.attention(layer, x)?;
        x = build.feed_forward(layer, x)?;
    }
    // The logits are linear in the factors of the last norm.
    let x = build.normalised("norm", x, "model.norm", Rows::Outputs, config.logits_scale)?;
    let head = if config.tie_word_embeddings {
        table
    } else {
        build.matrix("lm_head", config.hidden_size, "lm_head", config.vocab_size)?
    };
    match config.logits_cap {
        None => build.graph.linear("logits", x, head, None)?,
        Some(cap) => {
            let x = build.graph.linear("uncapped", x, head, None)?;
            build.graph.soft_cap("logits", x, cap)
        }
    };
    Ok(build.graph)
}

struct Builder<'a> {
    config: &'a Config,
    graph: Graph,
    /// The rotation of layers with a window.
    sliding_rope: RopeId,
}

impl Builder<'_> {
    fn attention(&mut self, layer: usize, x: NodeId) -> Result<NodeId> {
        let config = self.config;
        let (heads, kv_heads, head_dim) =
            (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let name = |suffix: &str| format!("layers.{layer}.{suffix}");
        let tensor = |suffix: &str| format!("model.layers.{layer}.{suffix}");

        let h = match config.norms.before() {
            true => self.norm(&name("attn_norm"), x, &tensor("input_layernorm"))?,
            false => x,
        };

        let window = config.window.filter(|_| config.sliding_layers.contains(&layer));
        let rope = if window.is_some() { self.sliding_rope } else { RopeId(0) };
        let order = RowOrder::Rotary { head_dim, rotated: self.graph.ropes[rope.0].rotated };
        let all = (heads + 2 * kv_heads) * head_dim;
        let part = |suffix: &str, kind: &str, before: usize, heads: usize, order| Part {
            tensor: tensor(&format!(
                "self_attn.{}.{kind}",
                if config.joined_tensors { "qkv_proj" } else { suffix }
            )),
            rows: heads * head_dim,
            order,
            within: config.joined_tensors.then_some((before * head_dim, all)),
        };
        let parts = |kind: &str| {
            vec![
                part("q_proj", kind, 0, heads, order),
                part("k_proj", kind, heads, kv_heads, order),
                part("v_proj", kind, heads + kv_heads, kv_heads, RowOrder::Stored),
            ]
        };
        let qkv = self.graph.weight(WeightSpec {
            name: name("qkv"),
            rows: all,
            cols: config.hidden_size,
            parts: parts("weight"),
            interleaved: false,
        })?;
        let bias = config.attention_bias.then(|| {
            self.graph.vector(VectorSpec {
                name: name("qkv_bias"),
                parts: parts("bias"),
                interleaved: false,
                shift: 0.0,
                scale: 1.0,
            })
        });
        let qkv = self.graph.linear(&name("qkv"), h, qkv, bias)?;
        let qkv = match config.query_norms {
            None => qkv,
            Some(spans) => {
                let [q, k] = [("q_norm", heads), ("k_norm", kv_heads)].map(|(suffix, count)| {
                    let rows = head_dim * if spans == Spans::All { count } else { 1 };
                    let tensor = tensor(&format!("self_attn.{suffix}.weight"));
                    let parts = vec![Part { tensor, rows, order, within: None }];
                    self.graph.vector(VectorSpec {
                        name: name(suffix),
                        parts,
                        interleaved: false,
                        shift: config.norm_shift,
                        scale: 1.0,
                    })
                });
                let (name, heads) = (name("qk_norm"), Heads { heads, kv_heads, head_dim });
                self.graph.head_norm(&name, qkv, [q, k], config.norm_eps, heads)?
            }
        };
        let rope = (!config.unrotated_layers.contains(&layer)).then_some(rope);
        let q = self.graph.rope_kv_by(&name("q"), qkv, Heads { heads, kv_heads, head_dim }, rope)?;
        let scale = config.attention_scale.unwrap_or(1.0 / (head_dim as f32).sqrt());
        let scores = Scores { scale, window, cap: config.attention_cap };
        let attn = self.graph.attention_by(&name("attn"), q, scores)?;

        let o_proj = tensor("self_attn.o_proj");
        let out = self.matrix(&name("o"), heads * head_dim, &o_proj, config.hidden_size)?;
        let bias = config.attention_output_bias.then(|| self.bias(&name("o_bias"), &o_proj));
        let mut out = self.graph.linear(&name("o"), attn, out, bias)?;
        if config.norms.after() {
            out = self.norm(&name("attn_post_norm"), out, &tensor("post_attention_layernorm"))?;
        }
        self.graph.add_scaled(&name("attn_out"), x, out, config.residual_scale)
    }

    fn feed_forward(&mut self, layer: usize, x: NodeId) -> Result<NodeId> {
        let config = self.config;
        let name = |suffix: &str| format!("layers.{layer}.{suffix}");
        let tensor = |suffix: &str| format!("model.layers.{layer}.{suffix}");

        // Where both are normalised, before and after, the norm after attention has that name.
        let before = match config.norms {
            Norms::Before => Some("post_attention_layernorm"),
            Norms::Both => Some("pre_feedforward_layernorm"),
            Norms::After => None,
        };
        let h = match before {
            Some(before) => self.norm(&name("mlp_norm"), x, &tensor(before))?,
            None => x,
        };

        let wide = config.intermediate_size;
        let both = |kind: &str| {
            let part = |suffix: &str, before: usize| Part {
                tensor: tensor(&format!(
                    "mlp.{}.{kind}",
                    if config.joined_tensors { "gate_up_proj" } else { suffix }
                )),
                rows: wide,
                order: RowOrder::Stored,
                within: config.joined_tensors.then_some((before, 2 * wide)),
            };
            vec![part("gate_proj", 0), part("up_proj", wide)]
        };
        let weight = self.graph.weight(WeightSpec {
            name: name("gate_up"),
            rows: 2 * wide,
            cols: config.hidden_size,
            parts: both("weight"),
            interleaved: true,
        })?;
        let bias = config.mlp_bias.then(|| {
            let (name, parts) = (name("gate_up_bias"), both("bias"));
            self.graph.vector(VectorSpec { name, parts, interleaved: true, shift: 0.0, scale: 1.0 })
        });
        let h = self.graph.linear(&name("gate_up"), h, weight, bias)?;
        let h = self.graph.glu(&name(config.hidden_act.glu()), h, config.hidden_act)?;

        let down = tensor("mlp.down_proj");
        let weight = self.matrix(&name("down"), wide, &down, config.hidden_size)?;
        let bias = config.mlp_bias.then(|| self.bias(&name("down_bias"), &down));
        let mut h = self.graph.linear(&name("down"), h, weight, bias)?;
        if config.norms.after() {
            h = self.norm(&name("mlp_post_norm"), h, &tensor("post_feedforward_layernorm"))?;
        }
        self.graph.add_scaled(&name("out"), x, h, config.residual_scale)
    }

    /// `x`, normalised by the module called `stem`.
    fn norm(&mut self, name: &str, x: NodeId, stem: &str) -> Result<NodeId> {
        self.normalised(name, x, stem, Rows::Tokens, 1.0)
    }

    /// As [`norm`](Self::norm), of some rows, times `scale`.
    fn normalised(&mut self, name: &str, x: NodeId, stem: &str, rows: Rows, scale: f32) -> Result<NodeId> {
        let eps = self.config.norm_eps;
        let weight = self.vector(name, format!("{stem}.weight"), self.config.norm_shift, scale);
        match self.config.norm_kind {
            NormKind::Rms => self.graph.rms_norm(name, x, weight, eps, rows),
            NormKind::Layer => {
                let bias = self.vector(&format!("{name}_bias"), format!("{stem}.bias"), 0.0, scale);
                self.graph.layer_norm(name, x, [weight, bias], eps, rows)
            }
        }
    }

    /// A vector as wide as the residual stream, shifted and then times `scale`.
    fn vector(&mut self, name: &str, tensor: String, shift: f32, scale: f32) -> VectorId {
        let part = Part { tensor, rows: self.config.hidden_size, order: RowOrder::Stored, within: None };
        let parts = vec![part];
        self.graph.vector(VectorSpec { name: name.to_string(), parts, interleaved: false, shift, scale })
    }

    /// The matrix of a tensor.
    fn matrix(&mut self, name: &str, cols: usize, stem: &str, rows: usize) -> Result<WeightId> {
        let tensor = format!("{stem}.weight");
        let parts = vec![Part { tensor, rows, order: RowOrder::Stored, within: None }];
        self.graph.weight(WeightSpec { name: name.to_string(), rows, cols, parts, interleaved: false })
    }

    fn bias(&mut self, name: &str, stem: &str) -> VectorId {
        self.vector(name, format!("{stem}.bias"), 0.0, 1.0)
    }
}
