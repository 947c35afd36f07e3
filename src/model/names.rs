//! Names of tensors: graphs use Hugging Face's; GGUF has its own.

/// GGUF's name for one of Hugging Face's: `model.layers.3.mlp.up_proj.weight` becomes
/// `blk.3.ffn_up.weight`. `own` names modules otherwise than most models. Unknown names stay.
pub fn gguf(own: &[(&str, &str)], name: &str) -> String {
    let fixed = [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];
    for (from, to) in fixed {
        if let Some(kind) = name.strip_prefix(from).and_then(|rest| rest.strip_prefix('.')) {
            return format!("{to}.{kind}");
        }
    }
    let modules = [
        ("input_layernorm", "attn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.qkv_proj", "attn_qkv"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.gate_up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    let split = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    if let Some((layer, rest)) = split {
        for (from, to) in own.iter().copied().chain(modules) {
            if let Some(kind) = rest.strip_prefix(from).and_then(|r| r.strip_prefix('.')) {
                return format!("blk.{layer}.{to}.{kind}");
            }
        }
    }
    name.to_string()
}

#[cfg(test)]
mod tests {
    use super::gguf;

    #[test]
    fn names_are_translated() {
        assert_eq!(gguf(&[], "model.layers.12.self_attn.o_proj.bias"), "blk.12.attn_output.bias");
        assert_eq!(gguf(&[], "model.layers.0.post_attention_layernorm.weight"), "blk.0.ffn_norm.weight");
        assert_eq!(
            gguf(
                &[("post_attention_layernorm", "post_attention_norm")],
                "model.layers.0.post_attention_layernorm.weight"
            ),
            "blk.0.post_attention_norm.weight"
        );
        assert_eq!(gguf(&[], "lm_head.weight"), "output.weight");
        assert_eq!(gguf(&[], "something.else"), "something.else");
    }
}
