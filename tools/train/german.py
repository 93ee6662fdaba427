"""Grammatical German news sentences from a small grammar, for the translation prompts."""

from __future__ import annotations

import random


def _parts(text: str) -> list[str]:
    return text.strip().replace("\n", "|").split("|")


_SUBJECTS = _parts("""
Der Bürgermeister|Die Ministerin|Ein Sprecher der Polizei|Die Bundesregierung
Der Trainer der Mannschaft|Das Unternehmen|Die Gewerkschaft|Der Vorsitzende des Vereins
Eine Gruppe von Forschern|Die Europäische Kommission|Der Präsident|Das Gericht|Die Opposition
Der Stadtrat|Die Leiterin des Museums|Ein Vertreter der Bank|Die Feuerwehr|Der Regisseur
Die Universität|Der Automobilhersteller|Die Krankenkasse|Der Verband der Landwirte
Die Schauspielerin|Der Flughafenbetreiber
""")

_TIMES = _parts("""
am Montag|am Dienstagabend|am vergangenen Wochenende|in der Nacht zum Freitag|gestern
vor zwei Wochen|im vergangenen Jahr|nach langen Verhandlungen|kurz vor Mitternacht
zum ersten Mal seit zehn Jahren|trotz der Kritik|wegen der hohen Kosten|im Juni
zu Beginn der Sitzung|am Rande der Konferenz|überraschend
""")

_PLACES = _parts("""
in Berlin|in Hamburg|in Wien|in der Schweiz|in Frankfurt am Main|in einem kleinen Dorf in Bayern
an der Nordsee|in Brüssel|vor dem Rathaus|in der Hauptstadt|in Dresden|in Leipzig
bei einer Veranstaltung in Köln|auf einer Pressekonferenz|im Norden des Landes
vor mehreren hundert Zuschauern
""")

_DEEDS = _parts("""
einen neuen Plan vorgestellt|die Ergebnisse einer Studie veröffentlicht|den Vertrag unterschrieben
vor den Folgen der Krise gewarnt|mehr Geld für Schulen gefordert|die Vorwürfe zurückgewiesen
über die Zukunft des Bahnhofs gesprochen|einen Preis für Umweltschutz erhalten
die Preise für Strom und Gas kritisiert|das Projekt vorerst gestoppt
eine bessere Zusammenarbeit versprochen|den Bau einer Brücke genehmigt
auf die Verletzung zweier Spieler hingewiesen|die Pläne zur Rente verteidigt
einen Rekordgewinn gemeldet|den Rücktritt angekündigt|die Suche nach dem vermissten Kind beendet
tausend neue Arbeitsplätze angekündigt|die Eröffnung des Theaters verschoben
eine Reform des Gesetzes verlangt
""")

_CLAIMS = _parts("""
die Zahl der Besucher deutlich gestiegen ist|viele Familien keine bezahlbare Wohnung finden
die Straße bis Ende des Jahres gesperrt bleibt|das Spiel wegen des schlechten Wetters ausfallen muss
die Wirtschaft im nächsten Jahr wieder wachsen wird|niemand bei dem Unfall verletzt wurde
die Kosten höher sind als erwartet|das neue Medikament gut vertragen wird
die Verhandlungen mit den Arbeitgebern gescheitert sind
der Zug mehr als drei Stunden Verspätung hatte
die Schüler künftig früher mit Englisch beginnen sollen|der Täter noch immer auf der Flucht ist
die Gemeinde einen neuen Kindergarten braucht|der Wald in den letzten Jahren stark gelitten hat
die Bürger besser informiert werden müssen|das Hotel im Frühjahr wieder öffnen kann
die Temperaturen am Wochenende auf über dreißig Grad steigen
das Internet auf dem Land zu langsam ist|die Partei ihre Mehrheit verloren hat
der Film auch im Ausland großen Erfolg hat
""")

_VERBS = ["sagte", "erklärte", "betonte", "bestätigte", "berichtete", "räumte ein"]

_QUESTIONS = _parts("""
Wie viele Menschen leben heute {place}?|Warum haben so viele Kunden {time} ihr Geld zurückverlangt?
Können Sie mir sagen, ob {claim}?|Wer hat {time} {place} gewonnen?|Was passiert, wenn {claim}?
Wann wird {subject_low} {place} erwartet?
""")


def sentence(rng: random.Random) -> str:
    """One sentence; about one in six has the spaces before punctuation that tokenised corpora have."""
    subject, time, place = rng.choice(_SUBJECTS), rng.choice(_TIMES), rng.choice(_PLACES)
    claim, other = rng.sample(_CLAIMS, 2)
    first = subject.split(" ")[0]
    parts = {
        "subject": subject,
        "subject_low": first.lower() + subject[len(first) :],
        "time": time,
        "time_up": time[0].upper() + time[1:],
        "place": place,
        "deed": rng.choice(_DEEDS),
        "claim": claim,
        "other": other,
        "verb": rng.choice(_VERBS[:-1]),
        "number": rng.choice(("zwölf", "rund 200", "mehr als 3000", "etwa 40", "fast eine Million", "17")),
    }
    forms = (
        "{subject} hat {time} {place} {deed}.",
        "{subject} {verb} {time} {place}, dass {claim}.",
        "{time_up} hat {subject_low} {place} {deed}.",
        "Obwohl {claim}, hat {subject_low} {time} {deed}.",
        "Nach Angaben der Behörden wurden {time} {place} {number} Menschen in Sicherheit gebracht.",
        "Weil {claim}, wurde {time} {place} über eine Lösung beraten.",
        "„Wir wissen, dass {claim}“, {verb} {subject_low} {time}.",
        "{subject} {verb}, dass {claim} und dass {other}.",
        "Seit Jahren wird {place} darüber gestritten, ob {claim}.",
        "Es ist {time} bekannt geworden, dass {claim}.",
        rng.choice(_QUESTIONS),
    )
    text = rng.choice(forms).format(**parts)
    if rng.random() < 1 / 6:
        text = text.replace(", ", " , ").replace(".", " .").replace("?", " ?")
    return text
