"""Lists the data sets on this machine, shows them, and prepares them from files.

  ddpm-jax data list
  ddpm-jax data show ./photos --image_size 64 --out photos.png      formats, sizes, classes, and a picture of 64 images
  ddpm-jax data prepare cifar10 cifar-10-python.tar.gz              once; then every command knows cifar10
  ddpm-jax data prepare my_birds ~/photos --image_size 64           your own folder or zip

Prepared sets are in --data_dir, by default $DDPM_JAX_DATA, else $TFDS_DATA_DIR, else ~/tensorflow_datasets. "digits" is
built in. Run an interrupted `prepare` again to continue it; finished parts are checked and repaired. It knows:

  mnist              folder of the four idx files             imagenet64_adm, imagenet128_adm, imagenet256_adm,
  cifar10            cifar-10-python.tar.gz, or its folder    imagenet512_adm    folder or zip with train/<class>/...
  celeba64_ddim      folder of img_align_celeba(.zip) and     lsun_bedroom256, lsun_church256, lsun_cat256,
                     list_eval_partition.txt                  lsun_horse256      folder of the lmdb (needs lmdb)
  celeba_hq256       folder or zip of images                  any other name     folder or zip of images
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
  where = argparse.ArgumentParser(add_help=False)
  where.add_argument("--data_dir", help="where prepared data sets are (default: see ddpm-jax data --help)")
  how = argparse.ArgumentParser(add_help=False, parents=[where])
  how.add_argument("--image_size", type=_size, metavar="N", help="pixels, or HEIGHT,WIDTH (default: the images' own)")
  how.add_argument("--channels", type=int, help="1 grey, 2, 3 RGB or 4 RGBA (default: 1 or 3 by the images)")
  how.add_argument("--crop", default="adm", help="adm, lsun, ddim or celeba: how images are fitted (default %(default)s)")
  how.add_argument(
    "--labels",
    default="auto",
    help="of folders and zips: auto, folders, top, prefix, none, or a .csv, .json or .jsonl table (default %(default)s)",
  )
  how.add_argument(
    "--corrupt", default="error", help="error, or skip: leave out images that cannot be decoded (default %(default)s)"
  )
  how.add_argument("--background", default="white", help="color behind transparent pixels (default %(default)s)")
  how.add_argument("--value_range", type=_range, metavar="LOW,HIGH", help="black and white of .npy arrays and 16-bit images")
  how.add_argument(
    "--threads", type=int, metavar="N", help="decoding threads (default: by the image size and the number of cores)"
  )
  actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
  actions.add_parser("list", parents=[where], help="data sets in --data_dir", allow_abbrev=False)
  show = actions.add_parser("show", parents=[how], help="describe a data set and draw a picture", allow_abbrev=False)
  show.add_argument("name", help="name of a data set, or path to a folder or .zip (./photos)")
  show.add_argument("--split", default="train", help="train, test, train[:10%%], ... (default %(default)s)")
  show.add_argument("--out", help="write 64 images to this .png: the first, or random ones of a folder")
  prepare = actions.add_parser(
    "prepare", parents=[how], help="write a data set that every command knows by name", allow_abbrev=False
  )
  prepare.add_argument("name", help="its name")
  prepare.add_argument("path", help="the files as they were published, or your own")


def run(args: argparse.Namespace) -> int:
  {"list": _list, "show": _show, "prepare": _prepare}[args.action](args)
  return 0


def _list(args: argparse.Namespace) -> None:
  import pathlib

  from ddpm_jax import data
  from ddpm_jax.errors import UserError

  if args.data_dir and not pathlib.Path(args.data_dir).is_dir():
    raise UserError(f"There is no folder {args.data_dir}: check --data_dir.")
  for name, splits in data.prepared(args.data_dir).items():
    print(f"{name}  {', '.join(f'{split} {count}' for split, count in splits.items())}")


def _show(args: argparse.Namespace) -> None:
  from ddpm_jax import data
  from ddpm_jax.data import images
  from ddpm_jax.errors import UserError
  from ddpm_jax.sizes import text

  if args.out and not args.out.endswith(".png"):
    raise UserError(f"--out {args.out} must end in .png.")
  source = data.load(args.name, args.split, **_load_options(args))
  info = source.info
  print(f"{info.name} {info.split}: {len(source):,} images of {text(info.image_size)}x{info.channels}")
  for line in source.summary:
    print(f"  {line}")
  shown, labels = source.gather(source.some(64))
  if info.num_classes:
    print(f"{info.num_classes:,} classes; labels of some images: {' '.join(map(str, labels[:16]))} ...")
  if args.out:
    images.save_png(args.out, images.grid(shown, scale=max(1, 64 // min(info.shape[:2]))))
    print(f"Wrote {args.out}")


def _prepare(args: argparse.Namespace) -> None:
  from ddpm_jax import data
  from ddpm_jax.data.prepare import prepare

  folder = prepare(args.name, args.path, **_load_options(args))
  splits = data.prepared(args.data_dir)[args.name]
  print(f"Wrote {', '.join(f'{split} {count:,}' for split, count in splits.items())} images to {folder}")


def _load_options(args: argparse.Namespace) -> dict:
  names = ("data_dir", "image_size", "channels", "crop", "labels", "corrupt", "background", "value_range", "threads")
  return {name: getattr(args, name) for name in names}


def _size(text: str) -> int | tuple[int, ...]:
  """N of "64", or (height, width) of "48,64"."""
  sides = tuple(int(side) for side in text.split(","))
  return sides[0] if len(sides) == 1 else sides


def _range(text: str) -> tuple[float, ...]:
  return tuple(float(value) for value in text.split(","))
