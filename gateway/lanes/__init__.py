"""The public listener's lane in processes of its own: what each of them needs (`outpost`), and who answers it here."""
