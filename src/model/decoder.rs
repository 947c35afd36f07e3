//! The graph of all families: LLaMA's (Touvron et al. 2023a), which is pre-normalised attention with
//! rotary positions and a gated feed-forward part, with whatever a configuration has otherwise.

use crate::error::Result;
use crate::graph::{
    Graph, HeadNorm, Heads, NodeId, Part, RopeId, RowOrder, Scores, Spans, VectorId, VectorSpec, WeightId,
    WeightSpec,
};
use crate::model::{Config, Experts, HeadNorms, NormKind, Norms};
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
        x = build.layer(layer, x)?;
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
    fn layer(&mut self, layer: usize, x: NodeId) -> Result<NodeId> {
        let config = self.config;
        let name = |suffix: &str| format!("layers.{layer}.{suffix}");
        let tensor = |suffix: &str| format!("model.layers.{layer}.{suffix}");
        // Where both are normalised, before and after, the norm after attention has this name.
        let second = match config.norms {
            Norms::Before => "post_attention_layernorm",
            Norms::After | Norms::Both => "pre_feedforward_layernorm",
        };

        let h = match config.norms.before() {
            true => self.norm(&name("attn_norm"), x, &tensor("input_layernorm"))?,
            false => x,
        };
        let mut attn = self.attention(layer, h)?;
        if config.norms.after() {
            attn = self.norm(&name("attn_post_norm"), attn, &tensor("post_attention_layernorm"))?;
        }
        let x = self.graph.add_scaled(&name("attn_out"), x, attn, config.residual_scale)?;

        let h = match config.norms.before() {
            _ if config.parallel => h,
            true => self.norm(&name("mlp_norm"), x, &tensor(second))?,
            false => x,
        };
        let mut mlp = self.feed_forward(layer, h)?;
        if config.norms.after() {
            mlp = self.norm(&name("mlp_post_norm"), mlp, &tensor("post_feedforward_layernorm"))?;
        }
        self.graph.add_scaled(&name("out"), x, mlp, config.residual_scale)
    }

    /// What attention makes of `h`.
    fn attention(&mut self, layer: usize, h: NodeId) -> Result<NodeId> {
        let config = self.config;
        let (heads, kv_heads, head_dim) =
            (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let name = |suffix: &str| format!("layers.{layer}.{suffix}");
        let tensor = |suffix: &str| format!("model.layers.{layer}.{suffix}");

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
            matrices: 1,
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
            Some(norms) => self.head_norm(layer, qkv, Heads { heads, kv_heads, head_dim }, norms, order)?,
        };
        let rope = (!config.unrotated_layers.contains(&layer)).then_some(rope);
        let q = self.graph.rope_kv_by(&name("q"), qkv, Heads { heads, kv_heads, head_dim }, rope)?;
        let scale = config.attention_scale.unwrap_or(1.0 / (head_dim as f32).sqrt());
        let scores = Scores { scale, window, cap: config.attention_cap };
        let attn = self.graph.attention_by(&name("attn"), q, scores)?;

        let o_proj = tensor("self_attn.o_proj");
        let out = self.matrix(&name("o"), heads * head_dim, &o_proj, config.hidden_size)?;
        let bias =
            config.attention_output_bias.then(|| self.bias(&name("o_bias"), &o_proj, config.hidden_size));
        self.graph.linear(&name("o"), attn, out, bias)
    }

    /// q, k and v with the queries and keys normalised.
    fn head_norm(
        &mut self,
        layer: usize,
        qkv: NodeId,
        heads: Heads,
        norms: HeadNorms,
        order: RowOrder,
    ) -> Result<NodeId> {
        let config = self.config;
        let name = |suffix: &str| format!("layers.{layer}.{suffix}");
        let [q, k] = [("q", heads.heads), ("k", heads.kv_heads)].map(|(which, count)| {
            let part = |tensor: String, heads: usize| {
                let tensor = format!("model.layers.{layer}.self_attn.{tensor}.weight");
                Part { tensor, rows: heads * config.head_dim, order, within: None }
            };
            let parts = match norms {
                HeadNorms::Shared => vec![part(format!("{which}_norm"), 1)],
                HeadNorms::All | HeadNorms::Joined => vec![part(format!("{which}_norm"), count)],
                HeadNorms::Each => {
                    (0..count).map(|i| part(format!("{which}_layernorm.norms.{i}"), 1)).collect()
                }
            };
            self.graph.vector(VectorSpec {
                name: name(&format!("{which}_norm")),
                parts,
                interleaved: false,
                shift: config.norm_shift,
                scale: 1.0,
            })
        });
        let together = norms == HeadNorms::All;
        let norm = HeadNorm {
            q,
            k,
            spans: if together { Spans::All } else { Spans::Heads },
            centred: config.norm_kind == NormKind::Layer,
            eps: config.norm_eps,
        };
        self.graph.head_norm(&name("qk_norm"), qkv, norm, heads)
    }

    /// What the feed-forward part makes of `h`.
    fn feed_forward(&mut self, layer: usize, h: NodeId) -> Result<NodeId> {
        let config = self.config;
        let name = |suffix: &str| format!("layers.{layer}.{suffix}");
        let tensor = |suffix: &str| format!("model.layers.{layer}.{suffix}");

        if let Some(experts) = config.experts.as_ref().filter(|e| e.layers.contains(&layer)) {
            return self.experts(layer, h, experts);
        }
        let wide = config.intermediate_size;
        if !config.gated {
            let (up, down) = (tensor("mlp.c_fc"), tensor("mlp.c_proj"));
            let weight = self.matrix(&name("up"), config.hidden_size, &up, wide)?;
            let bias = config.mlp_bias.then(|| self.bias(&name("up_bias"), &up, wide));
            let h = self.graph.linear(&name("up"), h, weight, bias)?;
            let h = self.graph.activate(&name(config.hidden_act.name()), h, config.hidden_act);
            return self.down(layer, h, &down);
        }
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
            matrices: 1,
        })?;
        let bias = config.mlp_bias.then(|| {
            let (name, parts) = (name("gate_up_bias"), both("bias"));
            self.graph.vector(VectorSpec { name, parts, interleaved: true, shift: 0.0, scale: 1.0 })
        });
        let h = self.graph.linear(&name("gate_up"), h, weight, bias)?;
        let h = self.graph.glu(&name(config.hidden_act.glu()), h, config.hidden_act)?;

        self.down(layer, h, &tensor("mlp.down_proj"))
    }

    /// What the chosen experts make of `h`.
    fn experts(&mut self, layer: usize, h: NodeId, experts: &Experts) -> Result<NodeId> {
        let config = self.config;
        let name = |suffix: &str| format!("layers.{layer}.{suffix}");
        let [module, gate, up, down] = experts.modules;
        let stem = format!("model.layers.{layer}.{module}");

        let router =
            self.matrix(&name("router"), config.hidden_size, &format!("{stem}.gate"), experts.count)?;
        let logits = self.graph.linear(&name("router"), h, router, None)?;
        let routes = self.graph.route(&name("routes"), logits, experts.chosen, experts.normalised)?;

        let mut matrices = |name: String, which: &[&str], rows: usize, cols: usize| {
            let part = |expert: usize, which: &str| Part {
                tensor: match experts.joined {
                    true => format!("{stem}.experts.{which}.weight"),
                    false => format!("{stem}.experts.{expert}.{which}.weight"),
                },
                rows,
                order: RowOrder::Stored,
                within: experts.joined.then_some((expert * rows, experts.count * rows)),
            };
            let parts = (0..experts.count).flat_map(|expert| which.iter().map(move |w| part(expert, w)));
            self.graph.weight(WeightSpec {
                name,
                rows: experts.count * which.len() * rows,
                cols,
                parts: parts.collect(),
                interleaved: which.len() > 1,
                matrices: experts.count,
            })
        };
        let both = matrices(name("gate_up"), &[gate, up], experts.width, config.hidden_size)?;
        let down = matrices(name("down"), &[down], config.hidden_size, experts.width)?;
        let x = self.graph.expert_linear(&name("gate_up"), h, routes, both)?;
        let x = self.graph.glu(&name(config.hidden_act.glu()), x, config.hidden_act)?;
        let x = self.graph.expert_linear(&name("down"), x, routes, down)?;
        self.graph.combine(&name("combined"), x, routes)
    }

    /// The matrix that leads back to the residual stream.
    fn down(&mut self, layer: usize, h: NodeId, tensor: &str) -> Result<NodeId> {
        let config = self.config;
        let name = |suffix: &str| format!("layers.{layer}.{suffix}");
        let weight = self.matrix(&name("down"), config.intermediate_size, tensor, config.hidden_size)?;
        let bias = config.mlp_bias.then(|| self.bias(&name("down_bias"), tensor, config.hidden_size));
        self.graph.linear(&name("down"), h, weight, bias)
    }

    /// `x`, normalised by the module called `stem`.
    fn norm(&mut self, name: &str, x: NodeId, stem: &str) -> Result<NodeId> {
        self.normalised(name, x, stem, Rows::Tokens, 1.0)
    }

    /// As [`norm`](Self::norm), of some rows, times `scale`.
    fn normalised(&mut self, name: &str, x: NodeId, stem: &str, rows: Rows, scale: f32) -> Result<NodeId> {
        let (eps, wide) = (self.config.norm_eps, self.config.hidden_size);
        let weight = self.vector(name, format!("{stem}.weight"), wide, self.config.norm_shift, scale);
        match self.config.norm_kind {
            NormKind::Rms => self.graph.rms_norm(name, x, weight, eps, rows),
            NormKind::Layer => {
                let bias = self.vector(&format!("{name}_bias"), format!("{stem}.bias"), wide, 0.0, scale);
                self.graph.layer_norm(name, x, [weight, bias], eps, rows)
            }
        }
    }

    /// The vector of a tensor of `rows` values, shifted and then times `scale`.
    fn vector(&mut self, name: &str, tensor: String, rows: usize, shift: f32, scale: f32) -> VectorId {
        let parts = vec![Part { tensor, rows, order: RowOrder::Stored, within: None }];
        self.graph.vector(VectorSpec { name: name.to_string(), parts, interleaved: false, shift, scale })
    }

    /// The matrix of a tensor.
    fn matrix(&mut self, name: &str, cols: usize, stem: &str, rows: usize) -> Result<WeightId> {
        let tensor = format!("{stem}.weight");
        let parts = vec![Part { tensor, rows, order: RowOrder::Stored, within: None }];
        self.graph.weight(WeightSpec {
            name: name.to_string(),
            rows,
            cols,
            parts,
            interleaved: false,
            matrices: 1,
        })
    }

    /// The bias of a matrix of `rows` rows.
    fn bias(&mut self, name: &str, stem: &str, rows: usize) -> VectorId {
        self.vector(name, format!("{stem}.bias"), rows, 0.0, 1.0)
    }
}
