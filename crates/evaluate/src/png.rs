//! PNG files that remember how they were made.

use crate::{Error, Result};
use seedpo_tensor::write_atomic;
use std::io::Cursor;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// An image read from a PNG with its text chunks.
#[derive(Debug)]
pub struct PngImage {
    /// u8 RGB `[H, W, 3]`; grey is repeated over the channels, transparency is laid on white.
    pub image: Tensor,
    /// Keyword and text of every text chunk, in file order (tEXt and zTXt before iTXt).
    pub texts: Vec<(String, String)>,
}

/// Encodes u8 RGB `[H, W, 3]` as PNG, with one text chunk per (keyword, text): tEXt where the text is Latin-1, else
/// iTXt (UTF-8). Keywords: 1 to 79 Latin-1 characters.
///
/// Errors: [`Error::Shape`]; [`Error::Encode`] naming an impossible keyword.
pub fn encode_png(image: &Tensor, texts: &[(&str, &str)]) -> Result<Vec<u8>> {
    let size = image.size();
    let fits = size.len() == 3 && size[2] == 3 && size[..2].iter().all(|side| (1..=1 << 20).contains(side));
    if image.kind() != Kind::Uint8 || !fits {
        return Err(Error::Shape {
            what: "PNG image",
            expected: "u8 [H, W, 3] with H, W >= 1".to_owned(),
            found: format!("{:?} {size:?}", image.kind()),
        });
    }
    let pixels = Vec::<u8>::try_from(&image.f_to_device(Device::Cpu)?.f_contiguous()?.f_view([-1])?)?;
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, size[1] as u32, size[0] as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    for (keyword, text) in texts {
        add_text(&mut encoder, keyword, text)?;
    }
    let mut writer = encoder.write_header().map_err(|error| encode_error(&error))?;
    writer.write_image_data(&pixels).map_err(|error| encode_error(&error))?;
    writer.finish().map_err(|error| encode_error(&error))?;
    Ok(bytes)
}

fn add_text(encoder: &mut png::Encoder<'_, &mut Vec<u8>>, keyword: &str, text: &str) -> Result<()> {
    let length = keyword.chars().count();
    let latin = |text: &str| text.chars().all(|c| (1..=255).contains(&u32::from(c)));
    if !(1..=79).contains(&length) || !latin(keyword) {
        return Err(Error::Encode { reason: format!("keyword {keyword:?} is not 1 to 79 Latin-1 characters") });
    }
    if text.contains('\0') {
        return Err(Error::Encode { reason: format!("text of `{keyword}` holds a NUL character") });
    }
    let (keyword, text) = (keyword.to_owned(), text.to_owned());
    let added =
        if latin(&text) { encoder.add_text_chunk(keyword, text) } else { encoder.add_itxt_chunk(keyword, text) };
    added.map_err(|error| encode_error(&error))
}

fn encode_error(error: &png::EncodingError) -> Error {
    Error::Encode { reason: error.to_string() }
}

/// Writes [`encode_png`]'s bytes in one step: a reader never sees half an image.
///
/// Errors: those of [`encode_png`]; [`Error::File`].
pub fn write_png(path: &Path, image: &Tensor, texts: &[(&str, &str)]) -> Result<()> {
    Ok(write_atomic(path, &encode_png(image, texts)?)?)
}

/// Reads a PNG of any colour type as u8 RGB `[H, W, 3]` with its text chunks.
///
/// Errors: [`Error::File`]; [`Error::Format`] if it is no PNG, or a damaged one.
pub fn read_png(path: &Path) -> Result<PngImage> {
    let bytes = std::fs::read(path).map_err(|source| seedpo_tensor::Error::io(path, source))?;
    let format = |reason: String| Error::Format { path: path.to_path_buf(), reason };
    decode_png(&bytes).map_err(|error| format(format!("expected a readable PNG: {error}")))
}

/// Keyword and text of every text chunk of a PNG, in file order (tEXt and zTXt before iTXt), its pixels not looked at;
/// nothing where the bytes are no PNG.
pub fn png_texts(bytes: &[u8]) -> Vec<(String, String)> {
    let read = || -> std::result::Result<_, png::DecodingError> {
        let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info()?;
        reader.finish()?;
        texts(reader.info())
    };
    read().unwrap_or_default()
}

fn texts(info: &png::Info) -> std::result::Result<Vec<(String, String)>, png::DecodingError> {
    let mut texts: Vec<(String, String)> =
        info.uncompressed_latin1_text.iter().map(|chunk| (chunk.keyword.clone(), chunk.text.clone())).collect();
    for chunk in &info.compressed_latin1_text {
        texts.push((chunk.keyword.clone(), chunk.get_text()?));
    }
    for chunk in &info.utf8_text {
        texts.push((chunk.keyword.clone(), chunk.get_text()?));
    }
    Ok(texts)
}

fn decode_png(bytes: &[u8]) -> std::result::Result<PngImage, png::DecodingError> {
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info()?;
    let size = reader.output_buffer_size().ok_or(png::DecodingError::LimitsExceeded)?;
    let mut buffer = vec![0; size];
    let frame = reader.next_frame(&mut buffer)?;
    reader.finish()?;
    let channels = frame.color_type.samples();
    let pixels: Vec<u8> = buffer[..frame.buffer_size()].chunks_exact(channels).flat_map(on_white).collect();
    let shape = [i64::from(frame.height), i64::from(frame.width), 3];
    let texts = texts(reader.info())?;
    Ok(PngImage { image: Tensor::from_slice(&pixels).view(shape), texts })
}

/// A grey, grey+alpha, RGB or RGBA pixel as RGB over white.
fn on_white(pixel: &[u8]) -> [u8; 3] {
    let over = |value: u8, alpha: u8| {
        ((u32::from(value) * u32::from(alpha) + 255 * (255 - u32::from(alpha)) + 127) / 255) as u8
    };
    match *pixel {
        [grey] => [grey; 3],
        [grey, alpha] => [over(grey, alpha); 3],
        [red, green, blue] => [red, green, blue],
        [red, green, blue, alpha, ..] => [over(red, alpha), over(green, alpha), over(blue, alpha)],
        [] => [255; 3],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn image() -> Tensor {
        Tensor::arange(5 * 7 * 3, (Kind::Uint8, Device::Cpu)).view([5, 7, 3])
    }

    #[test]
    fn pixels_and_texts_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let texts = [
            ("prompt", "a caf\u{e9}, \"quoted\"\nsecond line"),
            ("settings", "{\"γ\": 1, \"🍎\": true}"),
            ("seed", "7"),
        ];
        write_png(&path, &image(), &texts).unwrap();
        let read = read_png(&path).unwrap();
        assert!(read.image == image());
        assert_eq!(png_texts(&std::fs::read(&path).unwrap()), read.texts);
        for (keyword, text) in texts {
            assert!(read.texts.contains(&(keyword.to_owned(), text.to_owned())), "{keyword}: {:?}", read.texts);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn bad_input_is_named() {
        let long = "k".repeat(80);
        for keyword in ["", long.as_str(), "🍎"] {
            assert!(matches!(encode_png(&image(), &[(keyword, "x")]), Err(Error::Encode { .. })), "{keyword}");
        }
        assert!(encode_png(&image(), &[("k", "a\0b")]).unwrap_err().to_string().contains("NUL"));
        assert!(matches!(encode_png(&image().to_kind(Kind::Float), &[]), Err(Error::Shape { .. })));
        assert!(matches!(encode_png(&image().view([1, 5, 7, 3]), &[]), Err(Error::Shape { .. })));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bad.png");
        assert!(read_png(&path).unwrap_err().to_string().contains("bad.png"));
        assert!(png_texts(b"not a png").is_empty());
        let whole = encode_png(&image(), &[]).unwrap();
        for bytes in [&b"garbage"[..], &[], &whole[..whole.len() / 2]] {
            std::fs::write(&path, bytes).unwrap();
            let text = read_png(&path).unwrap_err().to_string();
            assert!(text.contains("bad.png") && text.contains("PNG"), "{text}");
        }
    }

    #[test]
    fn transparency_is_laid_on_white() {
        assert_eq!(on_white(&[10, 20, 30, 0]), [255; 3]);
        assert_eq!(on_white(&[10, 20, 30, 255]), [10, 20, 30]);
        assert_eq!(on_white(&[0, 128]), [127; 3]);
        assert_eq!(on_white(&[9]), [9; 3]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_text_without_nul_survives(text in "[^\0]{0,40}") {
            let bytes = encode_png(&image(), &[("prompt", &text)]).unwrap();
            prop_assert_eq!(decode_png(&bytes).unwrap().texts, vec![("prompt".to_owned(), text)]);
        }
    }
}
