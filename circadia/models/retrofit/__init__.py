"""Take a Hugging Face decoder and let its MLPs learn at several frequencies. Start with `retrofit`."""

from circadia.models.retrofit.build import retrofit
from circadia.models.retrofit.files import load
from circadia.models.retrofit.model import RetrofitModel
from circadia.models.retrofit.report import ChunkReport, LevelReport, Report
from circadia.models.retrofit.settings import LevelSettings, Settings

__all__ = ["ChunkReport", "LevelReport", "LevelSettings", "Report", "RetrofitModel", "Settings", "load", "retrofit"]
