//! LoRA files between layouts: what is read from each is the same adapter.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use seedpo_model::adapter::{Layout, Lora, LoraConfig, LoraFile};
use seedpo_model::{Adapter, Delta, UNet2DConditionModel, UNetConfig};
use seedpo_tensor::{Device, Kind, Params, Tensor, WeightFile, write_weights};

/// Two residual blocks per level, as Stable Diffusion, so that the original block numbers mean the same.
fn unet() -> UNet2DConditionModel {
    let config = UNetConfig {
        block_out_channels: vec![8, 8, 8, 8],
        cross_attention_dim: vec![768],
        attention_head_dim: vec![2],
        norm_num_groups: 4,
        ..UNetConfig::default()
    };
    UNet2DConditionModel::new(config, Params::init(1, Device::Cpu)).unwrap()
}

/// Rank 2, but 3 in the middle; alpha 4, but 1.5 at one place.
fn adapter(unet: &UNet2DConditionModel) -> Adapter {
    let lora = |rank, alpha, targets: &[&str]| {
        let targets = targets.iter().map(|t| t.to_string()).collect();
        let adapter = Adapter::lora(unet, &LoraConfig { rank, alpha, targets, ..LoraConfig::default() }, 7).unwrap();
        tch::no_grad(|| adapter.trainable().iter_mut().for_each(|(_, tensor)| drop(tensor.normal_(0.0, 0.5))));
        (adapter.to_lora().unwrap(), 1.0)
    };
    let lora = Lora::combined(&[
        lora(2, 4.0, &["attn1.to_q", "attn2.to_k", "to_out.0"]),
        lora(3, 1.5, &["mid_block.attentions.0.transformer_blocks.0.attn2.to_v"]),
    ]);
    lora.unwrap().into_adapter(unet).unwrap()
}

/// The change of every projection, as a matrix.
fn changes(adapter: &Adapter) -> BTreeMap<String, Tensor> {
    let change = |path: &str| match adapter.delta(path) {
        Some(Delta::LowRank { a, b, scale }) => (b.detach().mm(&a.detach())) * *scale,
        other => panic!("{path}: {other:?}"),
    };
    adapter.paths().map(|path| (path.to_owned(), change(path))).collect()
}

fn assert_same(found: &Adapter, expected: &Adapter) {
    let (found, expected) = (changes(found), changes(expected));
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (path, change) in expected {
        // One rounding of the scale.
        assert!((&found[&path] - change).abs().max().double_value(&[]) < 1e-5, "{path}");
    }
}

/// Writes `tensors` of `from` under other names.
fn renamed(folder: &Path, from: &Path, rename: impl Fn(&str) -> String) -> PathBuf {
    let file = WeightFile::open(from).unwrap();
    let tensors = file.tensors().unwrap().into_iter().map(|(name, tensor)| (rename(&name), tensor)).collect();
    let path = folder.join("renamed.safetensors");
    write_weights(&path, &tensors, &BTreeMap::new()).unwrap();
    path
}

#[test]
fn both_layouts_written_are_read_as_the_same_adapter() {
    let (unet, folder) = (unet(), tempfile::tempdir().unwrap());
    let adapter = adapter(&unet);
    let (diffusers, kohya) = (folder.path().join("d.safetensors"), folder.path().join("k.safetensors"));
    adapter.save(&diffusers).unwrap();
    adapter.save_kohya(&kohya).unwrap();
    for (path, layout) in [(&diffusers, Layout::Diffusers), (&kohya, Layout::Kohya)] {
        assert_same(&Adapter::load(path, &unet).unwrap(), &adapter);
        let file = LoraFile::open(path).unwrap();
        assert_eq!(file.layouts.iter().collect::<Vec<_>>(), [&layout]);
        assert_eq!(file.family(), Some("Stable Diffusion 1.x"));
        // There and back, the bytes are the same.
        let (again, back) = (folder.path().join("again.safetensors"), LoraFile::open(&kohya).unwrap());
        back.into_lora(false).unwrap().save(&again).unwrap();
        assert_same(&Adapter::load(&again, &unet).unwrap(), &adapter);
    }
    let names: Vec<String> = WeightFile::open(&kohya).unwrap().names().map(str::to_owned).collect();
    for name in [
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight",
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0.alpha",
        "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_attn2_to_k.lora_up.weight",
    ] {
        assert!(names.iter().any(|n| n == name), "{name} not in {names:?}");
    }
    assert_eq!(WeightFile::open(&kohya).unwrap().metadata()["ss_network_dim"], "3");
}

#[test]
fn kohyas_original_block_names_and_any_alpha_are_read() {
    let (unet, folder) = (unet(), tempfile::tempdir().unwrap());
    let adapter = adapter(&unet);
    let kohya = folder.path().join("k.safetensors");
    adapter.save_kohya(&kohya).unwrap();
    let original = |name: &str| {
        let words: Vec<&str> = name.splitn(7, '_').collect();
        let number = |word: &str| word.parse::<usize>().unwrap();
        match words[..] {
            ["lora", "unet", "down", "blocks", i, "attentions", rest] => {
                let (j, rest) = rest.split_once('_').unwrap();
                format!("lora_unet_input_blocks_{}_1_{rest}", 3 * number(i) + number(j) + 1)
            }
            ["lora", "unet", "up", "blocks", i, "attentions", rest] => {
                let (j, rest) = rest.split_once('_').unwrap();
                format!("lora_unet_output_blocks_{}_1_{rest}", 3 * number(i) + number(j))
            }
            _ => name.replace("mid_block_attentions_0", "middle_block_1"),
        }
    };
    let path = renamed(folder.path(), &kohya, original);
    assert!(WeightFile::open(&path).unwrap().names().any(|name| name.starts_with("lora_unet_output_blocks_11_1_")));
    assert_same(&Adapter::load(&path, &unet).unwrap(), &adapter);
    let path = renamed(folder.path(), &kohya, |name| name.replace("lora_unet_", "lycoris_"));
    assert_same(&Adapter::load(&path, &unet).unwrap(), &adapter);
    let dotted = |name: &str| {
        let (stem, end) = name.split_once('.').unwrap();
        let marks =
            [("_blocks_", "_blocks."), ("_1_", ".1."), ("_attn", ".attn"), ("_to_", ".to_"), ("_out_0", "_out.0")];
        let path = marks.iter().fold(stem.replace("lora_unet_", ""), |path, (from, to)| path.replace(from, to));
        format!("diffusion_model.{path}.{end}")
    };
    let path = renamed(folder.path(), &renamed(folder.path(), &kohya, original), dotted);
    assert_same(&Adapter::load(&path, &unet).unwrap(), &adapter);
    assert!(LoraFile::open(&path).unwrap().layouts.iter().eq([&Layout::ComfyUi]));

    // An integer alpha is one; none at all is scale 1.
    let file = WeightFile::open(&kohya).unwrap();
    let with_alpha = |alpha: Option<Tensor>| {
        let mut tensors: BTreeMap<String, Tensor> = file.tensors().unwrap();
        tensors.retain(|name, _| !name.ends_with(".alpha") || alpha.is_some());
        for (_, tensor) in tensors.iter_mut().filter(|(name, _)| name.ends_with(".alpha")) {
            *tensor = alpha.as_ref().unwrap().shallow_clone();
        }
        let path = folder.path().join("alpha.safetensors");
        write_weights(&path, &tensors, &BTreeMap::new()).unwrap();
        Adapter::load(&path, &unet)
    };
    let scales = |adapter: &Adapter| -> Vec<f64> {
        let scale = |path| match adapter.delta(path) {
            Some(Delta::LowRank { scale, a, .. }) => scale * a.size()[0] as f64,
            _ => f64::NAN,
        };
        adapter.paths().map(scale).collect()
    };
    assert!(scales(&with_alpha(Some(Tensor::from(6i64))).unwrap()).iter().all(|alpha| *alpha == 6.0));
    let half = Tensor::from(6.5f32).to_kind(Kind::Half);
    assert!(scales(&with_alpha(Some(half)).unwrap()).iter().all(|alpha| *alpha == 6.5));
    // As in diffusers; sd-scripts takes it for the rank.
    assert!(scales(&with_alpha(Some(Tensor::from(0f32))).unwrap()).iter().all(|alpha| *alpha == 0.0));
    let none = with_alpha(None).unwrap();
    assert!(none.paths().all(|path| matches!(none.delta(path), Some(Delta::LowRank { scale, .. }) if *scale == 1.0)));
    let message = with_alpha(Some(Tensor::from_slice(&[1f32, 2.0]))).unwrap_err().to_string();
    assert!(message.contains(".alpha") && message.contains("one finite number"), "{message}");
}

#[test]
fn what_is_not_applied_is_refused_by_name_or_left_out_on_request() {
    let (unet, folder) = (unet(), tempfile::tempdir().unwrap());
    let adapter = adapter(&unet);
    let path = folder.path().join("k.safetensors");
    adapter.save_kohya(&path).unwrap();
    let mut tensors = WeightFile::open(&path).unwrap().tensors().unwrap();
    let one = || Tensor::ones([1, 1], (Kind::Float, Device::Cpu));
    for name in [
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.hada_w1_a",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.hada_w1_b",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha",
        "lora_unet_down_blocks_0_resnets_0_conv2.lora_down.weight",
        "lora_unet_down_blocks_0_resnets_0_conv2.lora_mid.weight",
        "lora_unet_down_blocks_0_resnets_0_conv1.lokr_w1",
        "lora_unet_double_blocks_0_img_attn_proj.alpha",
        "lora_unet_up_blocks_1_attentions_0_proj_in.on_input",
        "lora_unet_up_blocks_1_attentions_0_proj_in.weight",
        "bundle_emb.style.string_to_param.*",
        "something.of.a.tool",
        "lora_unet_up_blocks_1_attentions_0_proj_out.a1.weight",
        "lora_unet_up_blocks_1_attentions_0_proj_out.alpha",
    ] {
        tensors.insert(name.to_owned(), one());
    }
    write_weights(&path, &tensors, &BTreeMap::new()).unwrap();
    let message = Adapter::load(&path, &unet).unwrap_err().to_string();
    for part in [
        "3 tensors such as `lora_te_text_model",
        "LoHa cannot be applied; merge the file into its model",
        "`lora_unet_down_blocks_0_resnets_0_conv1.lokr_w1`: LoKr",
        "layers that Stable Diffusion does not have",
        "--ignore-unsupported",
    ] {
        assert!(message.contains(part), "{part} not in {message}");
    }
    let file = LoraFile::open(&path).unwrap();
    let mut counts: Vec<usize> = file.unsupported.iter().map(|kind| kind.keys.len()).collect();
    counts.sort_unstable();
    assert_eq!(counts, [1, 1, 1, 2, 2, 3, 3]);
    assert_same(&file.into_lora(true).unwrap().into_adapter(&unet).unwrap(), &adapter);
    assert!(LoraFile::open(&path).unwrap().into_lora(false).is_err());
}

#[test]
fn a_lora_for_another_model_says_so() {
    let (unet, folder) = (unet(), tempfile::tempdir().unwrap());
    let other = UNetConfig { cross_attention_dim: vec![1024], ..unet.config().clone() };
    let other = UNet2DConditionModel::new(other, Params::init(1, Device::Cpu)).unwrap();
    let path = folder.path().join("k.safetensors");
    adapter(&unet).save_kohya(&path).unwrap();
    let message = Adapter::load(&path, &other).unwrap_err().to_string();
    assert!(message.contains("[2, 1024]") && message.contains("[2, 768]"), "{message}");
    assert!(message.contains("made for Stable Diffusion 1.x") && message.contains("more of this kind"), "{message}");
}

#[test]
fn the_summary_counts_and_measures() {
    let (unet, folder) = (unet(), tempfile::tempdir().unwrap());
    let adapter = adapter(&unet);
    let path = folder.path().join("k.safetensors");
    adapter.save_kohya(&path).unwrap();
    let summary = LoraFile::open(&path).unwrap().summary();
    assert_eq!(summary.ranks, BTreeMap::from([(2, 64), (3, 1)]));
    assert_eq!(summary.targets["attn1.to_q"], 16);
    assert_eq!((summary.without_effect, summary.not_finite.len()), (0, 0));
    let all = changes(&adapter);
    let middle = all.iter().filter(|(path, _)| path.starts_with("mid_block"));
    let expected = middle.map(|(_, change)| change.norm().double_value(&[]).powi(2)).sum::<f64>().sqrt();
    assert!((summary.blocks["mid_block"].norm / expected - 1.0).abs() < 1e-5);

    let mut tensors = WeightFile::open(&path).unwrap().tensors().unwrap();
    let bad = tensors.keys().find(|name| name.ends_with("lora_up.weight")).unwrap().clone();
    let _ = tensors.get_mut(&bad).unwrap().fill_(f64::NAN);
    write_weights(&path, &tensors, &BTreeMap::new()).unwrap();
    assert_eq!(LoraFile::open(&path).unwrap().summary().not_finite.len(), 1);
    let message = Adapter::load(&path, &unet).unwrap_err().to_string();
    assert!(message.contains("finite") && message.contains("unet."), "{message}");
}

/// Kohya's name of the text encoder is another for SDXL: known by what only one of them has, else asked for.
#[test]
fn the_text_encoders_name_follows_the_family() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lora.safetensors");
    let text = ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", 768);
    let written = |layers: &[(&str, i64)], sdxl: Option<bool>| {
        let pair = |(name, width): &(&str, i64)| {
            let ones = |shape: &[i64]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
            [(format!("{name}.lora_A.weight"), ones(&[1, *width])), (format!("{name}.lora_B.weight"), ones(&[8, 1]))]
        };
        write_weights(&path, &layers.iter().flat_map(pair).collect(), &BTreeMap::new()).unwrap();
        let lora = LoraFile::open(&path).unwrap().into_lora(false).unwrap();
        lora.save_kohya(&path, sdxl).map(|()| {
            let file = WeightFile::open(&path).unwrap();
            let name = file.names().find(|name| name.starts_with("lora_te")).unwrap();
            name.split('_').nth(1).unwrap().to_owned()
        })
    };
    for (layer, expected) in [
        (("unet.down_blocks.2.attentions.0.transformer_blocks.9.attn1.to_q", 8), "te1"),
        (("unet.up_blocks.0.attentions.0.transformer_blocks.1.ff.net.2", 8), "te1"),
        (("unet.add_embedding.linear_1", 8), "te1"),
        (("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k", 2048), "te1"),
        (("text_encoder_2.text_model.encoder.layers.0.mlp.fc1", 8), "te1"),
        (("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k", 768), "te"),
        (("unet.up_blocks.3.resnets.0.conv1", 8), "te"),
        (("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", 8), "te"),
        (("text_encoder.text_model.encoder.layers.1.self_attn.q_proj", 1024), "te"),
    ] {
        assert_eq!(written(&[text, layer], None).unwrap(), expected, "{layer:?}");
        assert_eq!(written(&[text, layer], Some(expected == "te1")).unwrap(), expected, "{layer:?}");
        let message = written(&[text, layer], Some(expected != "te1")).unwrap_err().to_string();
        assert!(message.contains("SDXL") && message.contains("1.x or 2.x"), "{message}");
    }
    let open = ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q", 1280);
    assert!(written(&[text, open], None).unwrap_err().to_string().contains("--family"));
    assert_eq!(written(&[text, open], Some(true)).unwrap(), "te1");
    assert_eq!(written(&[text, open], Some(false)).unwrap(), "te");
}

/// Files of tools that write alpha and rank as plain entries of the metadata, in their several spellings.
#[test]
fn plain_metadata_scales_and_contradictions_are_refused() {
    let (unet, folder) = (unet(), tempfile::tempdir().unwrap());
    let config = LoraConfig { rank: 4, alpha: 4.0, ..LoraConfig::default() };
    let tensors: BTreeMap<String, Tensor> =
        Adapter::lora(&unet, &config, 7).unwrap().tensors().into_iter().map(|(key, t)| (key, t.detach())).collect();
    let path = folder.path().join("plain.safetensors");
    let load = |said: &[(&str, &str)]| {
        let metadata = said.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        write_weights(&path, &tensors, &metadata).unwrap();
        let adapter = Adapter::load(&path, &unet).map_err(|e| e.to_string())?;
        let scale = |path: &str| match adapter.delta(path) {
            Some(Delta::LowRank { scale, .. }) => *scale,
            other => panic!("{path}: {other:?}"),
        };
        let scales: Vec<f64> = adapter.paths().map(scale).collect();
        assert!(scales.windows(2).all(|pair| pair[0] == pair[1]));
        Ok::<_, String>(scales[0])
    };
    let json = r#"{"unet.r": 4, "unet.lora_alpha": 8}"#;
    for (said, scale) in [
        (&[][..], 1.0),
        (&[("format", "pt"), ("rank", "4")], 1.0),
        (&[("alpha", "8"), ("rank", "4")], 2.0),
        (&[("lora_alpha", "8.0"), ("r", "4")], 2.0),
        (&[("unet.lora_alpha", "6"), ("unet.r", "4")], 1.5),
        (&[("unet.alpha", "6"), ("alpha", "6")], 1.5),
        // The rank is the tensors'.
        (&[("alpha", "2")], 0.5),
        (&[("alpha", "0"), ("rank", "4")], 0.0),
        (&[("text_encoder.alpha", "8")], 1.0),
        (&[("lora_adapter_metadata", json), ("alpha", "8")], 2.0),
    ] {
        assert_eq!(load(said), Ok(scale), "{said:?}");
    }
    for (said, parts) in [
        (&[("alpha", "8"), ("rank", "8")][..], ["rank 8", "found 4"]),
        (&[("alpha", "8"), ("lora_alpha", "4")], ["`metadata alpha`", "`lora_alpha`"]),
        (&[("alpha", "8"), ("unet.alpha", "4")], ["`metadata alpha`", "`unet.alpha`"]),
        (&[("alpha", "eight")], ["`metadata alpha`", "a number, found eight"]),
        (&[("alpha", "inf")], ["`metadata alpha`", "found inf"]),
        (&[("lora_adapter_metadata", json), ("alpha", "4")], ["`metadata lora_alpha`", "expected 8"]),
    ] {
        let message = load(said).unwrap_err();
        assert!(parts.iter().all(|part| message.contains(part)), "{said:?}: {message}");
    }
}
