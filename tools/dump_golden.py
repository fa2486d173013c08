"""Extra tiny MoE goldens, same file format as make_goldens.py. usage: more_goldens.py OUT [--only a,b]"""
import argparse, pathlib, torch, transformers, traceback, zlib
from safetensors.torch import save_file
torch.set_num_threads(1)
H, I, E, K, L, V = 88, 40, 10, 3, 2, 64
base = dict(vocab_size=V, hidden_size=H, intermediate_size=I * 2, num_hidden_layers=L, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=64, head_dim=20, pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False)
mla = dict(head_dim=16, kv_lora_rank=16, q_lora_rank=24, qk_rope_head_dim=16, qk_nope_head_dim=16, v_head_dim=16, num_key_value_heads=4)
dsa = dict(index_n_heads=2, index_head_dim=32, index_topk=16)
routed = dict(moe_intermediate_size=I, n_routed_experts=E, num_experts_per_tok=K)
nexp = dict(moe_intermediate_size=I, num_experts=E, num_experts_per_tok=K)
rt = {"rope_type": "default", "rope_theta": 10000.0}
T = transformers
def vl(text, extra=None): return {"text": text, **(extra or {})}
# name: (config class, model class, kwargs, options)
F = {
 "lfm2_moe": ("Lfm2MoeConfig", "Lfm2MoeForCausalLM", {**base, **nexp, "num_dense_layers": 1, "num_hidden_layers": 3, "routed_scaling_factor": 1.3, "layer_types": ["full_attention"] * 3}, {}),
 "lfm2_moe-nobias": ("Lfm2MoeConfig", "Lfm2MoeForCausalLM", {**base, **nexp, "num_dense_layers": 0, "use_expert_bias": False, "norm_topk_prob": False, "routed_scaling_factor": 0.7, "layer_types": ["full_attention"] * 2}, {}),
 "mimo_v2_flash": ("MiMoV2FlashConfig", "MiMoV2FlashForCausalLM", {**base, **routed, "n_group": 2, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.6, "v_head_dim": 20, "layer_types": ["full_attention"] * 2}, {}),
 "exaone_moe": ("ExaoneMoeConfig", "ExaoneMoeForCausalLM", {**base, **nexp, "num_shared_experts": 2, "n_group": 2, "topk_group": 1, "layer_types": ["full_attention"] * 2}, {}),
 "hy_v3": ("HYV3Config", "HYV3ForCausalLM", {**base, **nexp, "num_shared_experts": 2}, {}),
 "qwen3_vl_moe": ("Qwen3VLMoeConfig", "Qwen3VLMoeForConditionalGeneration", {"text_config": {**base, **nexp, "rope_parameters": {**rt, "mrope_section": [4, 3, 3]}}, "vision_config": {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": H, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}, "image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}, {"idmax": 59}),
 "qwen3_5_moe-vl": ("Qwen3_5MoeConfig", "Qwen3_5MoeForConditionalGeneration", {"text_config": {**base, **nexp, "shared_expert_intermediate_size": 24, "layer_types": ["full_attention"] * 2, "rope_parameters": {**rt, "mrope_section": [4, 3, 3]}}, "vision_config": {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": H, "num_position_embeddings": 16}, "image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}, {"idmax": 59}),
 "gemma4_text": ("Gemma4TextConfig", "Gemma4ForCausalLM", {**base, "enable_moe_block": True, "num_experts": E, "top_k_experts": K, "moe_intermediate_size": I, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": V, "global_head_dim": 20, "layer_types": ["sliding_attention", "full_attention"]}, {"layer": True}),
 "aria_text": ("AriaTextConfig", "AriaTextForCausalLM", {**base, "intermediate_size": I, "moe_num_experts": E, "moe_topk": K, "moe_num_shared_experts": 2}, {}),
 "granitemoeshared": ("GraniteMoeSharedConfig", "GraniteMoeSharedForCausalLM", {**base, "intermediate_size": I, "num_local_experts": E, "num_experts_per_tok": K, "shared_intermediate_size": 56, "residual_multiplier": 0.7}, {}),
 "granitemoehybrid": ("GraniteMoeHybridConfig", "GraniteMoeHybridForCausalLM", {**base, "intermediate_size": I, "num_local_experts": E, "num_experts_per_tok": K, "shared_intermediate_size": 56, "layer_types": ["full_attention"] * 2, "mamba_n_heads": 8, "mamba_d_head": 22, "mamba_expand": 2, "mamba_d_state": 16}, {}),
 "glm4_moe_lite": ("Glm4MoeLiteConfig", "Glm4MoeLiteForCausalLM", {**{k: v for k, v in base.items() if k != "head_dim"}, **{k: v for k, v in mla.items() if k != "head_dim"}, **routed, "n_shared_experts": 2, "n_group": 2, "topk_group": 1}, {}),
 "glm_moe_dsa": ("GlmMoeDsaConfig", "GlmMoeDsaForCausalLM", {**base, **mla, **dsa, **routed, "n_shared_experts": 1, "first_k_dense_replace": 1}, {}),
 "minimax": ("MiniMaxConfig", "MiniMaxForCausalLM", {**base, "intermediate_size": I, "num_local_experts": E, "num_experts_per_tok": K, "layer_types": ["full_attention"] * 2, "block_size": 16}, {}),
 "cohere2_moe": ("Cohere2MoeConfig", "Cohere2MoeForCausalLM", {**base, "intermediate_size": I, "num_experts": E, "num_experts_per_tok": K, "num_shared_experts": 2, "expert_selection_fn": "sigmoid", "shared_expert_combination_strategy": "average", "first_k_dense_replace": 1, "prefix_dense_intermediate_size": 64, "layer_types": ["full_attention"] * 2}, {}),
 "cohere2_moe-softmax": ("Cohere2MoeConfig", "Cohere2MoeForCausalLM", {**base, "intermediate_size": I, "num_experts": E, "num_experts_per_tok": K, "num_shared_experts": 1, "expert_selection_fn": "softmax", "shared_expert_combination_strategy": "sum", "layer_types": ["full_attention"] * 2}, {}),
 "laguna": ("LagunaConfig", "LagunaForCausalLM", {**base, **nexp, "shared_expert_intermediate_size": 56, "moe_routed_scaling_factor": 2.2, "moe_router_logit_softcapping": 1.5}, {}),
 "solar_open": ("SolarOpenConfig", "SolarOpenForCausalLM", {**base, **routed, "n_shared_experts": 2, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 1.4}, {}),
 "deepseek_v4": ("DeepseekV4Config", "DeepseekV4ForCausalLM", {**base, **routed, "num_hidden_layers": 3, "num_hash_layers": 1, "swiglu_limit": 0.5, "head_dim": 32, "qk_rope_head_dim": 16, "q_lora_rank": 24, "o_groups": 2, "o_lora_rank": 16, "index_n_heads": 2, "index_head_dim": 32, "index_topk": 8, "intermediate_size": I, "sliding_window": 16, "num_key_value_heads": 1, "layer_types": ["sliding_attention"] * 3}, {}),
 "deepseek_v32": ("DeepseekV32Config", "DeepseekV32ForCausalLM", {**base, **mla, **dsa, **routed, "n_shared_experts": 1, "n_group": 5, "topk_group": 3, "first_k_dense_replace": 1}, {}),
 "minimax_m3_vl_text": ("MiniMaxM3VLTextConfig", "MiniMaxM3VLForCausalLM", {**base, "intermediate_size": I, "num_local_experts": E, "num_experts_per_tok": K, "dense_intermediate_size": 72, "shared_intermediate_size": 56, "swiglu_limit": 0.6, "moe_layer_freq": [0, 1]}, {}),
 "step3p7": ("Step3p7Config", "Step3p7ForConditionalGeneration", {"vision_config": {"width": 16, "layers": 1, "heads": 2, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 28, "patch_size": 14}, "text_config": {**base, **routed, "sliding_window": 16, "share_expert_dim": 56, "moe_layers_enum": "1", "moe_router_scaling_factor": 1.8, "swiglu_limits": [0, 0.2], "swiglu_limits_shared": [0, 0.25]}}, {}),
 "ernie4_5_vl_moe": ("Ernie4_5_VLMoeConfig", "Ernie4_5_VLMoeForConditionalGeneration", {"text_config": {**base, "moe_intermediate_size": [I, 24], "moe_num_experts": E, "moe_k": K, "moe_num_shared_experts": 2, "rope_parameters": {**rt, "mrope_section": [3, 3, 4]}}, "vision_config": {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16}, "image_token_id": 60, "video_token_id": 61, "image_start_token_id": 58, "image_end_token_id": 57, "video_start_token_id": 56, "video_end_token_id": 55}, {"idmax": 54, "mm": True}),
 "mistral4": ("Mistral4Config", "Mistral4ForCausalLM", {**base, **mla, **routed, "n_shared_experts": 2, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "routed_scaling_factor": 1.4, "rope_parameters": {"type": "yarn", "rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 32, "beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1, "partial_rotary_factor": 1.0}}, {}),
 "axk1": ("AXK1Config", "AXK1ForCausalLM", {**base, **mla, **routed, "n_shared_experts": 2, "n_group": 5, "topk_group": 2, "first_k_dense_replace": 1}, {}),
 "nemotron_h-latent": ("NemotronHConfig", "NemotronHForCausalLM", {**{k: v for k, v in base.items() if k != "num_hidden_layers"}, **routed, "moe_latent_size": 48, "moe_shared_expert_intermediate_size": 56, "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 2.5, "layers_block_type": ["moe", "attention", "moe"]}, {}),
 "longcat_flash": ("LongcatFlashConfig", "LongcatFlashForCausalLM", {**base, **mla, "n_routed_experts": E, "moe_topk": 5, "expert_ffn_hidden_size": I, "ffn_hidden_size": 72, "zero_expert_num": 6, "num_layers": 2, "num_hidden_layers": 4, "routed_scaling_factor": 3.0}, {}),
 "deepseek_v3-f32bias": ("DeepseekV3Config", "DeepseekV3ForCausalLM", {**base, **mla, **routed, "n_shared_experts": 2, "n_group": 5, "topk_group": 2, "first_k_dense_replace": 1, "routed_scaling_factor": 2.5}, {"f32bias": True}),
 "llama4": ("Llama4TextConfig", "Llama4ForCausalLM", {**base, "intermediate_size": I, "intermediate_size_mlp": 72, "num_local_experts": E, "num_experts_per_tok": 2, "interleave_moe_layer_step": 2}, {}),
 "phimoe": ("PhimoeConfig", "PhimoeForCausalLM", {**base, "num_local_experts": E, "num_experts_per_tok": 2, "intermediate_size": I, "router_jitter_noise": 0.15}, {}),
 "kimi_linear": ("KimiLinearConfig", "KimiLinearForCausalLM", {**base, **mla, "moe_intermediate_size": I, "num_experts": E, "num_experts_per_token": K, "num_shared_experts": 2, "num_expert_group": 2, "topk_group": 1, "layer_types": ["full_attention"] * 2}, {}),
 "inkling": ("InklingTextConfig", "InklingForCausalLM", {**base, **routed, "n_shared_experts": 2}, {}),
 "jetmoe": ("JetMoeConfig", "JetMoeForCausalLM", {**{k: v for k, v in base.items() if k not in ("head_dim", "num_attention_heads")}, "intermediate_size": I, "num_local_experts": E, "num_experts_per_tok": K, "kv_channels": 16}, {}),
 "qwen3_omni_thinker_text": ("Qwen3OmniMoeTextConfig", "Qwen3OmniMoeThinkerTextModel", {**base, **nexp, "rope_parameters": {**rt, "mrope_section": [4, 3, 3]}}, {"nologits": True}),
 "glm4v_moe": ("Glm4vMoeConfig", "Glm4vMoeForConditionalGeneration", {"text_config": {**base, **routed, "n_shared_experts": 2, "n_group": 2, "topk_group": 1, "rope_parameters": {**rt, "partial_rotary_factor": 0.5, "mrope_section": [2, 2, 1]}}, "vision_config": {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": H, "image_size": 28}, "image_token_id": 60, "video_token_id": 61, "image_start_token_id": 58, "image_end_token_id": 57, "video_start_token_id": 56, "video_end_token_id": 55}, {"idmax": 54}),
 "minimax_m3_vl": ("MiniMaxM3VLConfig", "MiniMaxM3SparseForConditionalGeneration", {"text_config": {**base, "intermediate_size": I, "num_local_experts": E, "num_experts_per_tok": K, "dense_intermediate_size": 72, "shared_intermediate_size": 56, "swiglu_limit": 0.6, "moe_layer_freq": [0, 1]}, "vision_config": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}, "projector_hidden_size": 16, "image_token_index": 60, "video_token_index": 61}, {"idmax": 59}),
 "inkling_mm": ("InklingConfig", "InklingForConditionalGeneration", {"text_config": {**base, **routed, "n_shared_experts": 2, "num_hidden_layers": 3, "dense_mlp_idx": 1, "dense_intermediate_size": 72}, "vision_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 4}, "audio_config": {"n_mel_bins": 4, "mel_vocab_size": 8}, "image_token_id": 60, "audio_token_id": 61}, {"idmax": 59}),
 "aria": ("AriaConfig", "AriaForConditionalGeneration", {"text_config": {**base, "model_type": "aria_text", "intermediate_size": I, "moe_num_experts": E, "moe_topk": K, "moe_num_shared_experts": 2}, "vision_config": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}, "image_token_index": 60}, {"idmax": 59}),
 "gemma4": ("Gemma4Config", "Gemma4ForConditionalGeneration", {"text_config": {**base, "enable_moe_block": True, "num_experts": E, "top_k_experts": K, "moe_intermediate_size": I, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": V, "global_head_dim": 20, "layer_types": ["sliding_attention", "full_attention"]}, "image_token_id": 60, "audio_token_id": 61, "video_token_id": 62}, {"idmax": 55, "layer": True}),
 "llama4-vl": ("Llama4Config", "Llama4ForConditionalGeneration", {"text_config": {**base, "intermediate_size": I, "intermediate_size_mlp": 72, "num_local_experts": E, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1}, "vision_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vision_output_dim": 16, "image_size": 28, "patch_size": 14, "projector_input_dim": 16, "projector_output_dim": 16}, "image_token_index": 60}, {"idmax": 55}),
}
def find(n):
    c = getattr(T, n, None)
    if c is not None: return c
    import importlib, pkgutil
    pre = {"Glm4v": "glm4v_moe", "Qwen3Omni": "qwen3_omni_moe", "MiniMaxM3": "minimax_m3_vl", "Step3p7": "step3p7", "Inkling": "inkling"}
    for p, m in pre.items():
        if n.startswith(p):
            mod = importlib.import_module(f"transformers.models.{m}.{'configuration' if n.endswith('Config') else 'modeling'}_{m}")
            return getattr(mod, n)
    raise AttributeError(n)
ap = argparse.ArgumentParser(); ap.add_argument("out"); ap.add_argument("--only", default=""); ap.add_argument("--tokens", type=int, default=32); a = ap.parse_args()
for name, (cc, mc, kw, opt) in F.items():
    if a.only and name not in a.only.split(","): continue
    try:
        torch.manual_seed(zlib.crc32(name.encode()) & 0xffff)
        cfg = find(cc)(**kw); model = find(mc)(cfg).eval()
        if opt.get("eager"): model.set_attn_implementation("eager")
        for n, p in model.named_parameters():
            q = p.data
            if any(x in n for x in ("e_score_correction", "expert_bias", "router_bias")): q.normal_(0, 0.15)
            elif "per_expert_scale" in n or "global_scale" in n or n.endswith("router.scale"): q.uniform_(0.6, 1.6)
            elif p.dim() >= 2:
                fan = p.shape[-1] if p.dim() == 2 else max(p.shape[1:])
                q.normal_(0, fan ** -0.5)
            elif "bias" in n: q.normal_(0, 0.1)
            elif "norm" in n: q.uniform_(0.7, 1.3)
        for n, b in model.named_buffers():
            if any(x in n for x in ("correction", "e_score", "expert_bias")): b.data.normal_(0, 0.15)
            if "tid2eid" in n:
                b.data.copy_(torch.stack([torch.randperm(E)[:b.shape[1]] for _ in range(b.shape[0])]))
        bias = {n: t.clone() for n, t in model.state_dict().items() if any(x in n for x in ("correction", "expert_bias", "tid2eid"))}
        model = model.to(torch.bfloat16)
        f32 = opt.get("f32bias")
        for n, t in dict(list(model.named_buffers()) + list(model.named_parameters())).items():
            if n in bias:
                if t.dtype.is_floating_point and f32: t.data = bias[n].float()
                elif not t.dtype.is_floating_point: t.data = bias[n]
                else: t.data.copy_(bias[n].to(t.dtype))
        out = pathlib.Path(a.out) / name; out.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(out)
        model = model.float(); io = {}
        def put(k, t): io[k] = t.detach().reshape(-1, H).float().clone().contiguous()
        def hook(n):
            def f(mod, args, kwargs, res):
                x = args[0] if args else next(kwargs[k] for k in ("hidden_states", "layer_input", "x") if k in kwargs)
                y = res[0] if isinstance(res, tuple) else res
                put(n + ".input", x); put(n + ".output", y)
            return f
        def rhook(n):
            def f(mod, args, res):
                for i, t in enumerate(res if isinstance(res, tuple) else (res,)):
                    if torch.is_tensor(t): io[f"{n}.router.{i}"] = t.detach().clone().contiguous()
            return f
        blocks = {n: m for n, m in model.named_modules() if isinstance(getattr(m, "experts", None), torch.nn.Module)}
        if name == "ernie4_5_vl_moe": blocks.update({n: m for n, m in model.named_modules() if type(m).__name__ == "Ernie4_5_VLMoeMoeBlock"})
        if name == "jetmoe": blocks = {n: m for n, m in model.named_modules() if type(m).__name__ == "JetMoeMoE"}
        for n, m in blocks.items():
            if opt.get("layer"):  # Gemma4: router input and expert input differ
                m.router.register_forward_pre_hook(lambda mod, args, n=n: put(n + ".input", args[0]))
                m.experts.register_forward_hook(lambda mod, args, kwargs, res, n=n: (put(n + ".experts.input", args[0] if args else kwargs["hidden_states"]), put(n + ".output", res), None)[2], with_kwargs=True)
            else: m.register_forward_hook(hook(n), with_kwargs=True)
            for r in ("gate", "router"):
                if isinstance(getattr(m, r, None), torch.nn.Module): getattr(m, r).register_forward_hook(rhook(n))
            # a shared MLP that sits on the layer, outside the block
            par = model.get_submodule(n.rsplit(".", 1)[0])
            if isinstance(getattr(par, "shared_mlp", None), torch.nn.Module): par.shared_mlp.register_forward_hook(hook(n.rsplit(".", 1)[0] + ".shared_mlp"), with_kwargs=True)
        ids = torch.randint(3, opt.get("idmax", V), (1, a.tokens)); extra = {}
        if opt.get("mm"):
            m = torch.zeros(1, a.tokens, dtype=torch.int); m[:, ::3] = 1; extra = {"moe_mm_token_type_ids": m}; io["moe_mm_token_type_ids"] = m
        with torch.no_grad(): res = model(ids, **extra) if not opt.get("mm") else model(input_ids=ids, **extra)
        io["input_ids"] = ids
        if not opt.get("nologits"): io["logits"] = res.logits.float().contiguous()
        save_file(io, out / "moe_io.safetensors")
        print(name, "OK blocks", list(blocks), "mean|out|", [round(io[n + ".output"].abs().mean().item(), 3) for n in blocks if n + ".output" in io], flush=True)
    except Exception as ex:
        print(name, "FAILED", repr(ex)[:400]); print("   ", traceback.format_exc().splitlines()[-4:], flush=True)
