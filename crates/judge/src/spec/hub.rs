//! `hub:user/repo`: the judge whose published weights lie there.

use crate::{HubFile, JudgeInfo, names};

/// The judge whose own weights a repository (`user/repo`) or a file in it (`user/repo/file`) holds.
///
/// Errors, in words: no judge's weights are there, only what some need besides, or those of several; what to write instead.
pub fn published(id: &str) -> Result<&'static JudgeInfo, String> {
    let (repo, file) = match id.match_indices('/').nth(1) {
        Some((at, _)) => (&id[..at], Some(&id[at + 1..])),
        None => (id, None),
    };
    let there =
        |weights: &HubFile| weights.repo.eq_ignore_ascii_case(repo) && file.is_none_or(|file| file == weights.file);
    let own: Vec<&JudgeInfo> = names().iter().filter(|info| info.own_weights().any(there)).collect();
    // Judges that read the same files in another way are named by their names; the first is the usual one.
    let different: Vec<&JudgeInfo> = own
        .iter()
        .enumerate()
        .filter(|(at, info)| own[..*at].iter().all(|before| before.weights != info.weights))
        .map(|(_, info)| *info)
        .collect();
    match different[..] {
        [info] => Ok(info),
        [] => {
            let part = names().iter().find(|info| info.weights.iter().any(there)).map(|info| {
                format!(
                    "only a part of what `{0}` needs is there; write {0} for the published judge, or say which judge it \
                     is: NAME={id}",
                    info.name
                )
            });
            Err(part.unwrap_or_else(|| {
                "this repository is none of the published judges'; say which judge it is: NAME=user/repo".into()
            }))
        }
        _ => {
            let choices: Vec<String> = own.iter().map(|info| format!("{}={id}", info.name)).collect();
            Err(format!("several judges' weights are there; say which: {}", choices.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_stands_for_its_judge_alone() {
        for (id, name) in [
            ("yuvalkirstain/PickScore_v1", "pickscore"),
            ("yuvalkirstain/PickScore_v1/model.safetensors", "pickscore"),
            ("THUDM/ImageReward", "imagereward"),
            ("thudm/imagereward", "imagereward"),
            ("trl-lib/ddpo-aesthetic-predictor", "aesthetic"),
            ("openai/clip-vit-base-patch32", "clipscore"),
            ("xswu/HPSv2/HPS_v2_compressed.pt", "hpsv2"),
            ("xswu/HPSv2/HPS_v2.1_compressed.pt", "hpsv2.1"),
            ("SPO-Diffusion-Models/Step-Aware_Preference_Models/sdxl_step-aware_preference_model.bin", "spm-sdxl"),
        ] {
            assert_eq!(published(id).unwrap().name, name, "{id}");
        }
    }

    #[test]
    fn what_stands_for_several_or_none_is_refused_with_the_choices() {
        for (id, parts) in [
            ("xswu/HPSv2", &["hpsv2=xswu/HPSv2", "hpsv2.1=xswu/HPSv2", "hpsv2-no-antialias=xswu/HPSv2"][..]),
            ("SPO-Diffusion-Models/Step-Aware_Preference_Models", &["spm=SPO", "spm-sdxl=SPO"]),
            ("openai/clip-vit-large-patch14", &["part", "`aesthetic`", "NAME=openai/clip-vit-large-patch14"]),
            ("google-bert/bert-base-uncased", &["part", "`imagereward`"]),
            ("xswu/HPSv2/other.pt", &["none", "NAME=user/repo"]),
            ("some/repo", &["none", "NAME=user/repo"]),
        ] {
            let message = published(id).unwrap_err();
            assert!(parts.iter().all(|part| message.contains(part)), "{id}: {message}");
        }
    }
}
