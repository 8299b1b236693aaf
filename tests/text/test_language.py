from __future__ import annotations

import subprocess
import sys

import pytest

from sekkei.text.language import detect, known_languages

SENTENCES = {
    "en": "The government said on Monday that it would raise the price of bread before the end of the year.",
    "de": "Die Regierung teilte am Montag mit, dass sie den Preis für Brot noch vor Jahresende erhöhen werde.",
    "fr": "Le gouvernement a annoncé lundi qu'il augmenterait le prix du pain avant la fin de l'année.",
    "es": "El gobierno anunció el lunes que subiría el precio del pan antes de que terminara el año.",
    "ru": "Правительство сообщило в понедельник, что повысит цену на хлеб до конца года.",
    "ja": "政府は月曜日、年末までにパンの価格を引き上げると発表した。",
    "zh": "政府星期一表示，将在年底之前提高面包的价格。",
    "ko": "정부는 월요일에 연말 이전에 빵 가격을 인상하겠다고 밝혔다.",
}


@pytest.mark.parametrize("lang", SENTENCES)
def test_eight_languages(lang: str) -> None:
    found, probability = detect(SENTENCES[lang])
    assert found == lang
    assert 0.5 < probability <= 1


def test_known_languages_hold_them_all() -> None:
    assert set(SENTENCES) < set(known_languages())
    assert list(known_languages()) == sorted(known_languages())


def test_text_floor_needs_no_torch() -> None:
    code = "import sys, sekkei.text.pipeline.local, sekkei.text.document; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
