"""The physics that galaxies are drawn from and how they are seen: one row of assumptions."""

from __future__ import annotations

from dataclasses import dataclass

from lensing_models.data.galaxy import Bands
from lensing_models.data.law import Law, Uniform, digest_assumptions


@dataclass(frozen=True, kw_only=True, slots=True)
class GalaxyPhysics:
    """One set of physical assumptions. A field is a number, or a `Law` that each image draws from.

    Lengths are in px of a frame that is scaled to its galaxy: 25 px are about the Petrosian R90.

    Attributes:
        class_counts: Images of each class in the clean sample, whose shares the classes have.
        magnitude: Apparent magnitude in r [AB mag].
        surface_brightness: Mean within the half-light radius in r [mag/arcsec^2]; with the
            magnitude it gives that radius in arcsec, and so the scale of the frame.
        half_light_radius: Radius of half the light [px] of the disc, measured in circles.
        centre: Each of x and y, from the middle of the frame [px].
        psf_fwhm: Full width at half maximum of the PSF [arcsec].
        counts_per_nmgy: Photons detected of a source of 22.5 mag in one exposure, by band.
        sky_brightness: Of the sky, by band [mag/arcsec^2].
        round_q: Axis ratio of round galaxies; `in_between_q`, `cigar_q` of the others that are smooth.
        smooth_bulge_fraction: Share of the spheroid of a smooth galaxy, which is else a smooth disc
            of the same shape; `spiral_bulge_fraction` and `edge_on_bulge_fraction` of the others.
        smooth_n: Sersic index of a smooth galaxy's spheroid; `bulge_n` of a disc galaxy's.
        smooth_bulge_R: Its half-light radius over the disc's; `bulge_R` of a disc galaxy's.
        bulge_flattening: Axis ratio of a disc galaxy's bulge seen edge on.
        disc_flattening: Axis ratio at which the apparent one of an inclined disc ends.
        cos_inclination: Of a spiral; even for random directions.
        scale_height: Scale height of an edge-on disc, of sech^2, over its scale length.
        three_arms: Share of spirals with three arms; the others have two.
        arm_pitch: Angle between arm and circle [deg]; both senses are equally frequent.
        arm_contrast: Strength of the arms in r; `arm_colour` is the excess of it in g, and the lack in i.
        arm_sharpness: Concentration of the von Mises profile across an arm.
        arm_onset: Radius inside which arms fade, over the disc's scale length.
        bulge_g_r: Colour of spheroids [mag]; `disc_g_r` of discs that form stars, `smooth_disc_g_r` of
            the others. r - i follows it, as `r_i_slope` (g - r) + `r_i_offset`.
        origin: Where the numbers come from.
        limits: What the images cannot tell; it stands on the card of every data set.
    """

    name: str
    class_counts: tuple[int, ...]
    magnitude: Law
    surface_brightness: Law
    half_light_radius: Law
    centre: Law
    psf_fwhm: Law
    counts_per_nmgy: Bands
    sky_brightness: Bands
    round_q: Law
    in_between_q: Law
    cigar_q: Law
    smooth_bulge_fraction: Law
    spiral_bulge_fraction: Law
    edge_on_bulge_fraction: Law
    smooth_n: Law
    bulge_n: Law
    smooth_bulge_R: Law  # noqa: N815  the field's symbol
    bulge_R: Law  # noqa: N815  the field's symbol
    bulge_flattening: Law
    disc_flattening: float
    cos_inclination: Law
    scale_height: Law
    three_arms: float
    arm_pitch: Law
    arm_contrast: Law
    arm_colour: float
    arm_sharpness: Law
    arm_onset: Law
    bulge_g_r: Law
    disc_g_r: Law
    smooth_disc_g_r: Law
    r_i_slope: float
    r_i_offset: Law
    origin: str
    limits: str

    @property
    def digest(self) -> str:
        """Return the SHA-256 of every assumption; the words are none."""
        return digest_assumptions(self, words=("name", "origin", "limits"))


GALAXIES = GalaxyPhysics(
    name="galaxies",
    class_counts=(8434, 8069, 578, 3903, 7806),  # 28,790 in all, as their abstract says
    magnitude=Uniform(15.4, 17.0),
    surface_brightness=Uniform(20.3, 21.9),
    half_light_radius=Uniform(9.0, 13.0),
    centre=Uniform(-1.5, 1.5),
    psf_fwhm=Uniform(1.2, 1.7),
    counts_per_nmgy=(1000.0, 930.0, 750.0),  # about what 54 s of the SDSS camera give
    sky_brightness=(21.8, 20.86, 20.3),  # r: the median of DR7; its quartiles of seeing are 1.30 and 1.58 arcsec
    round_q=Uniform(0.85, 1.0),
    in_between_q=Uniform(0.5, 0.8),
    cigar_q=Uniform(0.22, 0.42),
    smooth_bulge_fraction=Uniform(0.3, 1.0),
    spiral_bulge_fraction=Uniform(0.05, 0.4),
    edge_on_bulge_fraction=Uniform(0.02, 0.4),
    smooth_n=Uniform(1.0, 3.5),
    bulge_n=Uniform(1.0, 2.5),
    smooth_bulge_R=Uniform(0.7, 1.0),
    bulge_R=Uniform(0.2, 0.4),
    bulge_flattening=Uniform(0.55, 0.9),
    disc_flattening=0.15,
    cos_inclination=Uniform(0.3, 1.0),
    scale_height=Uniform(0.12, 0.4),
    three_arms=0.25,
    arm_pitch=Uniform(12.0, 32.0),
    arm_contrast=Uniform(0.2, 0.85),
    arm_colour=0.15,
    arm_sharpness=Uniform(1.0, 3.0),
    arm_onset=Uniform(0.5, 1.2),
    bulge_g_r=Uniform(0.65, 0.85),
    disc_g_r=Uniform(0.3, 0.65),
    smooth_disc_g_r=Uniform(0.5, 0.8),
    r_i_slope=0.57,
    r_i_offset=Uniform(-0.06, 0.0),
    origin="Our estimate after Galaxy Zoo and SDSS: frames of 4.16 Petrosian R90 (Willett et al. 2013, "
    "arXiv:1308.3496), seeing and sky of SDSS DR7, shares of the clean sample of Dai & Tong 2018 (arXiv:1807.10406)",
    limits="Classes are those of the parameters, not of votes, and there are no bars, rings, dust, neighbours, stars "
    "or mergers: accuracies do not compare with those on Galaxy Zoo. The scale of a frame follows its galaxy; that of "
    "the task is nominal. Counts are linear and their noise is white; "
    "Galaxy Zoo shows stretched, resampled JPEG images.",
)
