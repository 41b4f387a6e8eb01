//! Not a check: writes the vocabulary of the six emoji for `python/fixtures/pretrain_tokenizer.py`, when asked to.

#[test]
fn write_the_vocabulary_where_asked() {
    let Some(folder) = std::env::var_os("SEEDPO_WRITE_VOCABULARY") else { return };
    let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/emoji");
    let data = seedpo_pretrain::Dataset::read(&data, 64).unwrap();
    let bpe = seedpo_pretrain::bpe::Bpe::train(&seedpo_pretrain::captions::corpus(&data.emoji), 560);
    bpe.save(std::path::Path::new(&folder), 16).unwrap();
}
