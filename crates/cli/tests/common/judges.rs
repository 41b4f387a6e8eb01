//! Small judges of one's own.

use std::collections::BTreeMap;

use seedpo_model::{ClipConfig, ClipModel};
use seedpo_tensor::{Device, Params, write_weights};

use super::Room;

/// A shell script that scores a batch 1, 2, 3, ..
pub const SCORER: &str = "while read -r job; do n=$(echo \"$job\" | grep -o '.png' | wc -l); printf '{\"scores\": ['; \
    i=1; while [ $i -lt $n ]; do printf '%s, ' $i; i=$((i+1)); done; echo \"$n]}\"; done";

/// A PickScore folder of this width, or a step-aware one.
pub fn judge_folder(room: &Room, name: &str, width: i64, step_aware: bool) {
    let heads = (width / 64).max(1);
    let tower = format!(
        r#""hidden_act": "gelu", "hidden_size": {width}, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": {heads}"#
    );
    let config = format!(
        r#"{{"projection_dim": 8, "text_config": {{{tower}}}, "vision_config": {{{tower}, "image_size": 8, "patch_size": 4}}}}"#
    );
    room.write(&format!("{name}/config.json"), config);
    let config = ClipConfig::from_file(&room.path(name).join("config.json")).unwrap();
    let clip = ClipModel::new(config.clone(), Params::init(4, Device::Cpu)).unwrap();
    let mut tensors: BTreeMap<_, _> = clip.parameters().iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect();
    if step_aware {
        tensors.extend(ClipModel::fresh_time_conditioning(&config, 1).unwrap());
        let last = "vision_model.adaLN_modulation.1.weight";
        tensors.insert(last.into(), tensors[last].ones_like() * 0.1);
    }
    write_weights(&room.path(name).join("model.safetensors"), &tensors, &BTreeMap::new()).unwrap();
}
